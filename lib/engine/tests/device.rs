//! The device layer on a real GPU, method by method. Without one these skip, with a line that says why.

use cute_engine::Error;
use cute_engine::backend::cuda::Driver;
use cute_engine::backend::cuda::gpu::{Arg, Gpu, Join, Launch, Ptr, Unit};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

const BLOCK: u32 = 256;

/// Set in the child process of a test that breaks its context.
const CHILD: &str = "CUTE_TEST_BREAKS_ITS_CONTEXT";

/// The first device, and this test's turn on it: two would disturb each other's times and free memory.
fn device() -> Option<(MutexGuard<'static, ()>, Driver)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Driver::open(0) {
        Ok(driver) => Some((turn, driver)),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn probe() -> Unit {
    Unit { file: "probe.cu", defines: vec![("BLOCK", BLOCK.to_string())] }
}

fn launch(grid: u32, smem: u32, join: Join) -> Launch {
    Launch { grid: [grid, 1, 1], block: BLOCK, smem, join }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn words(gpu: &Driver, at: Ptr, n: usize) -> Vec<u32> {
    let mut out = vec![0; n * 4];
    gpu.download(&mut out, at).unwrap();
    out.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn floats(gpu: &Driver, at: Ptr, n: usize) -> Vec<f32> {
    words(gpu, at, n).into_iter().map(f32::from_bits).collect()
}

/// The message of what must fail.
fn refused<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => error.to_string(),
    }
}

/// What `probe_barrier` leaves of `x`.
fn barrier_rounds(x: &[u32], rounds: u32) -> Vec<u32> {
    let mut x = x.to_vec();
    for _ in 0..rounds {
        x = (0..x.len()).map(|b| x[b].wrapping_add(x[(b + 1) % x.len()])).collect();
    }
    x
}

#[test]
fn a_device_says_what_it_is() {
    let Some((_turn, gpu)) = device() else { return };
    let name = gpu.name();
    println!("{name}: {} multiprocessors, {} bytes a block", gpu.multiprocessors(), gpu.shared_memory());
    assert!(name.starts_with("cuda:0 ") && name.ends_with(&format!("({})", gpu.arch())), "{name}");
    assert!(gpu.arch().starts_with("sm_") && gpu.multiprocessors() > 0 && gpu.shared_memory() >= 99 << 10);
    let (free, total) = gpu.memory().unwrap();
    assert!(free <= total && total > 1 << 30, "{free} of {total}");
    let error = refused(Driver::open(4096));
    assert!(error.starts_with("no device cuda:4096"), "{error}");
}

#[test]
fn bytes_come_back_as_they_went() {
    let Some((_turn, gpu)) = device() else { return };
    // Around the limits of the direct path and of the pinned buffers.
    for n in [0, 1, 3, 65_536, 65_537, (32 << 20) - 1, 32 << 20, (32 << 20) + 1, (100 << 20) + 7] {
        let mut from: Vec<u8> = (0..n).map(|i: usize| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let sent = from.clone();
        let [a, b] = [gpu.alloc(n).unwrap(), gpu.alloc(n).unwrap()];
        assert_eq!(a % 256, 0);
        gpu.upload(a, &from).unwrap();
        // It may be reused on return.
        from.fill(0xee);
        gpu.copy(b, a, n).unwrap();
        gpu.fill(a, 0x5a, n).unwrap();
        let mut back = vec![1; n];
        gpu.download(&mut back, b).unwrap();
        assert!(back == sent, "{n} bytes came back otherwise");
        gpu.download(&mut back, a).unwrap();
        assert!(back.iter().all(|x| *x == 0x5a), "{n} bytes were not filled");
        gpu.free(a).unwrap();
        gpu.free(b).unwrap();
    }
}

#[test]
fn many_uploads_in_a_row_all_arrive() {
    let Some((_turn, gpu)) = device() else { return };
    let n = 40 << 20;
    let at: Vec<Ptr> = (0..6).map(|_| gpu.alloc(n).unwrap()).collect();
    let mut from = vec![0u8; n];
    for (i, at) in at.iter().enumerate() {
        from.fill(i as u8 + 1);
        gpu.upload(*at, &from).unwrap();
    }
    for (i, at) in at.iter().enumerate() {
        gpu.download(&mut from, *at).unwrap();
        assert!(from.iter().all(|x| *x == i as u8 + 1), "upload {i}");
    }
}

#[test]
fn what_lies_outside_of_an_allocation_is_refused() {
    let Some((_turn, gpu)) = device() else { return };
    let at = gpu.alloc(1000).unwrap();
    let host = [0u8; 16];
    for error in [
        refused(gpu.upload(at + 990, &host)),
        refused(gpu.upload(host.as_ptr() as Ptr, &host)),
        refused(gpu.download(&mut [0; 16], at - 1)),
        refused(gpu.copy(at, at + 500, 501)),
        refused(gpu.fill(at, 0, 1001)),
    ] {
        assert!(error.contains("no allocated memory"), "{error}");
    }
    refused(gpu.free(at + 1));
    gpu.free(at).unwrap();
    refused(gpu.free(at));
    refused(gpu.fill(at, 0, 1));
    let error = refused(gpu.alloc(1 << 50));
    assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY") && error.contains("bytes are free"), "{error}");
    gpu.synchronize().unwrap();
}

#[test]
fn kernels_see_each_others_results_plain_and_overlapped() {
    let Some((_turn, gpu)) = device() else { return };
    gpu.compile(&[probe(), probe()]).unwrap();
    let axpy = gpu.kernel(&probe(), "probe_axpy", 0).unwrap();
    let n = 1_000_003;
    let [x, y] = [gpu.alloc(n * 4).unwrap(), gpu.alloc(n * 4).unwrap()];
    let start: Vec<u32> = (0..n).map(|i| ((i % 1000) as f32).to_bits()).collect();
    for join in [Join::Plain, Join::Overlapped] {
        gpu.upload(x, &bytes(&start)).unwrap();
        gpu.fill(y, 0, n * 4).unwrap();
        // Each step is exact, and wrong if it misses the one before. The comments say what x and y, v at first, are then.
        let args = |to, from, a| [Arg::Ptr(to), Arg::Ptr(from), Arg::F32(a), Arg::U64(n as u64)];
        gpu.launch(axpy, launch(500, 0, join), &args(y, x, 1.0)).unwrap();
        for _ in 0..50 {
            gpu.launch(axpy, launch(500, 0, join), &args(x, y, 1.0)).unwrap(); // 2v, v
            gpu.launch(axpy, launch(500, 0, join), &args(y, x, -0.5)).unwrap(); // 2v, 0
            gpu.launch(axpy, launch(500, 0, join), &args(y, x, 0.5)).unwrap(); // 2v, v
            gpu.launch(axpy, launch(500, 0, join), &args(x, y, -1.0)).unwrap(); // v, v
        }
        let expected: Vec<f32> = start.iter().map(|x| f32::from_bits(*x)).collect();
        assert!(floats(&gpu, x, n) == expected, "{join:?}: x");
        assert!(floats(&gpu, y, n) == expected, "{join:?}: y");
    }
}

#[test]
fn a_cooperative_grid_passes_its_barriers_and_one_too_large_is_refused() {
    let Some((_turn, gpu)) = device() else { return };
    let kernel = gpu.kernel(&probe(), "probe_barrier", 0).unwrap();
    let blocks = gpu.occupancy(kernel, BLOCK, 0).unwrap();
    let grid = blocks * gpu.multiprocessors();
    println!("{blocks} blocks a multiprocessor, {grid} at once");
    assert!(blocks >= 1);
    let n = grid as usize;
    let start: Vec<u32> = (0..grid).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let [x, count] = [gpu.alloc(2 * n * 4).unwrap(), gpu.alloc(4).unwrap()];
    let args = |rounds| [Arg::Ptr(x), Arg::Ptr(count), Arg::U32(rounds)];
    for rounds in [1, 2, 101] {
        gpu.upload(x, &bytes(&start)).unwrap();
        gpu.fill(count, 0, 4).unwrap();
        gpu.launch(kernel, launch(grid, 0, Join::Cooperative), &args(rounds)).unwrap();
        let row = u64::from(rounds % 2) * n as u64 * 4;
        assert_eq!(words(&gpu, x + row, n), barrier_rounds(&start, rounds), "{rounds} rounds");
    }
    let error = refused(gpu.launch(kernel, launch(grid + 1, 0, Join::Cooperative), &args(1)));
    assert!(error.contains("probe_barrier") && error.contains("COOPERATIVE_LAUNCH_TOO_LARGE"), "{error}");
    gpu.synchronize().unwrap();
}

#[test]
fn a_block_gets_all_the_shared_memory_it_asked_for() {
    let Some((_turn, gpu)) = device() else { return };
    // The most a block can have; the default; and less again.
    for smem in [gpu.shared_memory(), 48 << 10, 4096] {
        let kernel = gpu.kernel(&probe(), "probe_shared", smem).unwrap();
        let out = gpu.alloc(16).unwrap();
        let count = smem / 4;
        let args = [Arg::Ptr(out), Arg::U32(count)];
        gpu.launch(kernel, launch(4, smem, Join::Plain), &args).unwrap();
        // Σ (i + b) = n (n − 1) / 2 + n b
        let n = u64::from(count);
        let expected: Vec<u32> = (0..4).map(|b| (n * (n - 1) / 2 + n * b) as u32).collect();
        assert_eq!(words(&gpu, out, 4), expected, "{smem} bytes");
        assert!(gpu.occupancy(kernel, BLOCK, smem).unwrap() >= 1);
    }
    let error = refused(gpu.kernel(&probe(), "probe_shared", gpu.shared_memory() + 1024));
    assert!(error.contains("probe_shared") && error.contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
}

#[test]
fn launches_that_do_not_fit_their_kernel_are_refused() {
    let Some((_turn, gpu)) = device() else { return };
    let error = refused(gpu.kernel(&probe(), "nothing", 0));
    assert!(error.contains("\"nothing\"") && error.contains("probe_axpy"), "{error}");
    let kernel = gpu.kernel(&probe(), "probe_shared", 1024).unwrap();
    let out = gpu.alloc(16).unwrap();
    let args = [Arg::Ptr(out), Arg::U32(64)];
    let plain = launch(1, 1024, Join::Plain);
    refused(gpu.launch(kernel, plain, &args[..1]));
    refused(gpu.launch(kernel, plain, &[Arg::Ptr(out), Arg::U64(64)]));
    refused(gpu.launch(kernel, Launch { smem: 2048, ..plain }, &args));
    refused(gpu.launch(kernel, Launch { grid: [0, 1, 1], ..plain }, &args));
    let error = refused(gpu.launch(kernel, Launch { block: 4096, ..plain }, &args));
    assert!(error.contains("block 4096") && error.contains("cuLaunchKernelEx: CUDA_ERROR_"), "{error}");
    gpu.launch(kernel, plain, &args).unwrap();
    gpu.synchronize().unwrap();
}

#[test]
fn a_recording_with_every_kind_of_launch_replays() {
    let Some((_turn, gpu)) = device() else { return };
    let barrier = gpu.kernel(&probe(), "probe_barrier", 0).unwrap();
    let axpy = gpu.kernel(&probe(), "probe_axpy", 0).unwrap();
    let grid = gpu.multiprocessors();
    let n = grid as usize;
    let start: Vec<u32> = (1..=grid).collect();
    let [source, x, count] = [n, 2 * n, 1].map(|words| gpu.alloc(words * 4).unwrap());
    let [ones, sums] = [gpu.alloc(4000).unwrap(), gpu.alloc(4000).unwrap()];
    gpu.upload(source, &bytes(&start)).unwrap();
    gpu.upload(ones, &bytes(&[1f32.to_bits(); 1000])).unwrap();
    gpu.fill(sums, 0, 4000).unwrap();

    gpu.begin_capture().unwrap();
    gpu.fill(count, 0, 4).unwrap();
    gpu.copy(x, source, n * 4).unwrap();
    let args = [Arg::Ptr(x), Arg::Ptr(count), Arg::U32(3)];
    gpu.launch(barrier, launch(grid, 0, Join::Cooperative), &args).unwrap();
    for (join, a) in [(Join::Plain, 1.0), (Join::Overlapped, 2.0), (Join::Overlapped, 4.0)] {
        let args = [Arg::Ptr(sums), Arg::Ptr(ones), Arg::F32(a), Arg::U64(1000)];
        gpu.launch(axpy, launch(2, 0, join), &args).unwrap();
    }
    // What a recording cannot hold is refused, and does not spoil it.
    refused(gpu.alloc(4));
    refused(gpu.upload(count, &[0; 4]));
    refused(gpu.download(&mut [0; 4], count));
    refused(gpu.synchronize());
    refused(gpu.mark());
    refused(gpu.begin_capture());
    let graph = gpu.end_capture(true).unwrap().unwrap();

    assert_eq!(floats(&gpu, sums, 1000), [0.0; 1000], "a recording ran");
    for replay in 1..=10 {
        gpu.fill(x, 0xff, 2 * n * 4).unwrap();
        gpu.replay(graph).unwrap();
        assert_eq!(words(&gpu, x + n as u64 * 4, n), barrier_rounds(&start, 3), "replay {replay}");
        assert_eq!(floats(&gpu, sums, 1000), [7.0 * replay as f32; 1000]);
    }
    gpu.drop_graph(graph).unwrap();
    refused(gpu.replay(graph));
    refused(gpu.drop_graph(graph));
    refused(gpu.end_capture(true));
}

#[test]
fn a_recording_that_is_thrown_away_leaves_the_stream_usable() {
    let Some((_turn, gpu)) = device() else { return };
    let at = gpu.alloc(4).unwrap();
    gpu.fill(at, 0, 4).unwrap();
    gpu.begin_capture().unwrap();
    gpu.fill(at, 1, 4).unwrap();
    assert_eq!(gpu.end_capture(false).unwrap(), None);
    assert_eq!(words(&gpu, at, 1), [0]);
    // Also one in which a launch failed.
    let kernel = gpu.kernel(&probe(), "probe_barrier", 0).unwrap();
    gpu.begin_capture().unwrap();
    let args = [Arg::Ptr(at), Arg::Ptr(at), Arg::U32(1)];
    let too_large = launch(1 << 20, 0, Join::Cooperative);
    let failed = gpu.launch(kernel, too_large, &args).is_err();
    println!("a launch that is too large fails while recording: {failed}");
    assert_eq!(gpu.end_capture(false).unwrap(), None);
    gpu.fill(at, 2, 4).unwrap();
    assert_eq!(words(&gpu, at, 1), [0x0202_0202]);
}

#[test]
fn marks_measure_what_lies_between_them() {
    let Some((_turn, gpu)) = device() else { return };
    let n = 1 << 30;
    let at = gpu.alloc(n).unwrap();
    let [start, short, long] = {
        gpu.fill(at, 0, n).unwrap();
        let start = gpu.mark().unwrap();
        gpu.fill(at, 1, n / 8).unwrap();
        let short = gpu.mark().unwrap();
        for _ in 0..4 {
            gpu.fill(at, 2, n).unwrap();
        }
        [start, short, gpu.mark().unwrap()]
    };
    let [short_ms, long_ms] = [gpu.elapsed(start, short).unwrap(), gpu.elapsed(short, long).unwrap()];
    let rate = 4.0 * n as f32 / long_ms / 1e6;
    println!("fill: {short_ms:.3} ms for 1/8 GiB, {long_ms:.3} ms for 4 GiB, {rate:.0} GB/s");
    assert!(short_ms > 0.0 && long_ms > 8.0 * short_ms);
    assert!(gpu.elapsed(start, long).unwrap() >= long_ms);
    for _ in 0..5000 {
        gpu.mark().unwrap();
    }
    let error = refused(gpu.elapsed(start, long));
    assert!(error.contains("mark 0"), "{error}");
}

#[test]
fn transfers_and_launches_have_a_speed() {
    let Some((_turn, gpu)) = device() else { return };
    let n = 2 << 30;
    let at = gpu.alloc(n).unwrap();
    let mut host = vec![1u8; n];
    gpu.upload(at, &host).unwrap();
    gpu.synchronize().unwrap();
    let rate = |what: &str, start: std::time::Instant| {
        let rate = n as f64 / start.elapsed().as_secs_f64() / 1e9;
        println!("{what}: {rate:.1} GB/s");
        rate
    };
    let start = std::time::Instant::now();
    gpu.upload(at, &host).unwrap();
    gpu.synchronize().unwrap();
    let up = rate("upload", start);
    let start = std::time::Instant::now();
    gpu.download(&mut host, at).unwrap();
    let down = rate("download", start);
    let kernel = gpu.kernel(&probe(), "probe_axpy", 0).unwrap();
    let args = [Arg::Ptr(at), Arg::Ptr(at), Arg::F32(0.0), Arg::U64(1)];
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        gpu.launch(kernel, launch(1, 0, Join::Plain), &args).unwrap();
    }
    let queued = start.elapsed();
    gpu.synchronize().unwrap();
    println!("1000 launches: {queued:.2?} to queue, {:.2?} in all", start.elapsed());
    assert!(up > 1.0 && down > 1.0, "{up:.1} and {down:.1} GB/s");
}

#[test]
fn a_device_is_used_from_several_threads() {
    let Some((_turn, gpu)) = device() else { return };
    std::thread::scope(|scope| {
        for i in 0..8u8 {
            let gpu = &gpu;
            scope.spawn(move || {
                for n in [1000, 1 << 20] {
                    let at = gpu.alloc(n).unwrap();
                    gpu.upload(at, &vec![i; n]).unwrap();
                    let mut back = vec![0xff; n];
                    gpu.download(&mut back, at).unwrap();
                    assert!(back.iter().all(|x| *x == i));
                    gpu.kernel(&probe(), "probe_axpy", 0).unwrap();
                    gpu.free(at).unwrap();
                }
            });
        }
    });
}

#[test]
fn memory_is_given_back_with_the_device() {
    let Some((_turn, gpu)) = device() else { return };
    let (before, _) = gpu.memory().unwrap();
    let other = Driver::open(0).unwrap();
    other.alloc(4 << 30).unwrap();
    let (during, _) = gpu.memory().unwrap();
    drop(other);
    let (after, _) = gpu.memory().unwrap();
    println!("free: {before}, {during}, {after}");
    assert!(before >= during + (4 << 30) && after >= during + (4 << 30));
}

#[test]
fn an_error_in_a_kernel_surfaces_at_the_next_wait() {
    if std::env::var_os(CHILD).is_some() {
        let Some((_turn, gpu)) = device() else { return };
        let kernel = gpu.kernel(&probe(), "probe_axpy", 0).unwrap();
        let at = gpu.alloc(4).unwrap();
        let args = [Arg::Ptr(256), Arg::Ptr(256), Arg::F32(1.0), Arg::U64(1)];
        gpu.launch(kernel, launch(1, 0, Join::Plain), &args).unwrap();
        println!("child: {}", refused(gpu.synchronize()));
        println!("child: {}", refused(gpu.download(&mut [0; 4], at)));
        return;
    }
    if device().is_none() {
        return;
    }
    // It leaves nothing usable of its process.
    let name = "an_error_in_a_kernel_surfaces_at_the_next_wait";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let lines: Vec<&str> = said.lines().filter(|l| l.contains("child: ")).collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("work on cuda:0"), "{said}");
    assert!(lines.iter().all(|l| l.contains("CUDA_ERROR_ILLEGAL_ADDRESS")), "{said}");
}
