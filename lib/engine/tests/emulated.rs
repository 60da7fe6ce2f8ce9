//! The emulated device: it computes what a device does, and it says what a kernel does wrong.

mod selftest;

use cute_engine::backend::cuda::Emulated;
use cute_engine::backend::cuda::emulated::Settings;
use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::gpu::{Arg, Join, Launch, Unit};
use selftest::{get, get_floats, put, put_floats, words};
use std::path::Path;

fn settings() -> Settings {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated");
    Settings { cache: Some(cache), ..Settings::default() }
}

/// A device, or none and a line that says so where there is no compiler.
fn device(settings: Settings) -> Option<Emulated> {
    match Emulated::new(settings) {
        Ok(device) => Some(device),
        Err(e) => {
            println!("skipped: {e}");
            None
        }
    }
}

/// Runs a claim about devices in the ascending and in three random orders of threads.
fn in_every_order(claim: impl Fn(&dyn Gpu)) {
    for seed in 0..4 {
        let Some(device) = device(Settings { seed, ..settings() }) else { return };
        claim(&device);
        device.synchronize().unwrap();
    }
}

macro_rules! holds {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            in_every_order(selftest::$name);
        })*
    };
}

holds! {
    exchanges_of_a_warp
    floats_are_packed_to_the_nearest
    small_floats_are_unpacked_exactly
    a_tensor_core_multiplies
    matrices_come_in_fragments
    copies_arrive_in_their_order
    bulk_copies_arrive_at_their_barriers
    a_block_adds_up
    a_grid_meets_at_its_barrier
    no_atomic_change_is_lost
    functions_are_what_they_are_called
}

/// A device with one more kernel file, `own.cu`.
fn with_kernel(seed: u64, body: &str) -> Option<Emulated> {
    let text = format!("#include \"common.cuh\"\n{body}\n");
    device(Settings { seed, sources: vec![("own.cu", text)], ..settings() })
}

fn own() -> Unit {
    Unit { file: "own.cu", defines: vec![] }
}

/// Launches `own` of `own.cu`.
fn launch(device: &Emulated, grid: u32, block: u32, smem: u32, args: &[Arg]) -> Result<(), String> {
    join(device, Join::Plain, grid, block, smem, args)
}

fn join(device: &Emulated, join: Join, grid: u32, block: u32, smem: u32, args: &[Arg]) -> Result<(), String> {
    let kernel = device.kernel(&own(), "own", smem).map_err(|e| e.to_string())?;
    device.launch(kernel, Launch { grid: [grid, 1, 1], block, smem, join }, args).map_err(|e| e.to_string())
}

#[track_caller]
fn says(outcome: Result<(), String>, parts: &[&str]) {
    let message = outcome.expect_err("a launch that goes wrong");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

#[test]
fn lanes_at_different_operations_are_named() {
    let body = "extern \"C\" __global__ void own(float* out) {\n\
                float x = threadIdx.x;\n\
                if (blockIdx.x == 1 && threadIdx.x >= 40)\n\
                __syncwarp();\n\
                else\n\
                x = __shfl_xor_sync(FULL, x, 1);\n\
                out[threadIdx.x] = x;\n\
                }\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    let out = device.alloc(64 * 4).unwrap();
    let place = [
        "`own`, block (1, 0, 0), warp 1: lane 8 is at __syncwarp (own.cu:5)",
        "lane 0 at __shfl_xor_sync (own.cu:7)",
    ];
    says(launch(&device, 3, 64, 0, &[Arg::Ptr(out)]), &place);
    let after = device.synchronize().unwrap_err().to_string();
    assert!(after.contains("failed before: kernel `own`"), "{after}");
}

#[test]
fn a_lane_that_has_ended_is_missed_by_its_warp_and_by_its_block() {
    let body = "extern \"C\" __global__ void own(u32 last, u32 whole) {\n\
                if (threadIdx.x == last) return;\n\
                if (whole) __syncthreads(); else __syncwarp();\n\
                }\nEXPORT(own)";
    for (last, whole, parts) in [
        (37, 0, "warp 1: lane 0 waits at __syncwarp (own.cu:4), but lane 5 of warp 1 has ended"),
        (37, 1, "warp 0: lane 0 waits at __syncthreads (own.cu:4), but lane 5 of warp 1 has ended"),
    ] {
        let Some(device) = with_kernel(0, body) else { return };
        says(launch(&device, 1, 96, 0, &[Arg::U32(last), Arg::U32(whole)]), &[parts]);
    }
}

#[test]
fn half_a_warp_at_the_barrier_of_the_block_is_divergence() {
    let body = "extern \"C\" __global__ void own() {\n\
                if (threadIdx.x % 32 < 16) __syncthreads(); else warp_sum(1.0f);\n\
                }\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    says(
        launch(&device, 1, 64, 0, &[]),
        &["waits at", "__syncthreads (own.cu:3)", "__shfl_xor_sync (common.cuh:"],
    );
}

#[test]
fn a_thread_that_waits_for_nobody_ends_the_launch() {
    let body = "extern \"C\" __global__ void own(u32* count) {\n\
                u32 target = 1;\n\
                grid_barrier(count, target);\n\
                }\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    let count = put(&device, &[0]);
    let outcome = join(&device, Join::Cooperative, 3, 64, 0, &[Arg::Ptr(count)]);
    says(outcome, &["thread 0: waits for what no other thread does"]);
}

/// Adds up 64 values by way of shared memory; with `BARRIER` empty, too early.
fn missing_barrier(seed: u64, barrier: &str) -> Option<(f32, f32)> {
    let body = format!(
        "extern \"C\" __global__ void own(float* out, const float* in) {{\n\
         float* s = (float*)SMEM;\n\
         s[threadIdx.x] = in[threadIdx.x];\n\
         {barrier};\n\
         out[threadIdx.x] = s[63 - threadIdx.x];\n\
         }}\nEXPORT(own)"
    );
    let device = with_kernel(seed, &body)?;
    let x = selftest::floats(1, 64);
    let (input, out) = (put_floats(&device, &x), device.alloc(256).unwrap());
    launch(&device, 1, 64, 256, &[Arg::Ptr(out), Arg::Ptr(input)]).unwrap();
    let got: f32 = get_floats(&device, out, 64).iter().rev().sum();
    Some((got, x.iter().sum()))
}

#[test]
fn shared_memory_read_too_early_is_nan() {
    for seed in 0..3 {
        let Some((good, want)) = missing_barrier(seed, "__syncthreads()") else { return };
        assert_eq!(good, want);
        assert!(missing_barrier(seed, "").unwrap().0.is_nan());
    }
}

#[test]
fn an_order_of_threads_shows_a_race_that_another_hides() {
    // Each thread reads its left neighbour's value: right as long as threads run in ascending order.
    let body = "extern \"C\" __global__ void own(u32* out) {\n\
                u32* s = (u32*)SMEM;\n\
                s[threadIdx.x] = threadIdx.x;\n\
                out[blockIdx.x * 64 + threadIdx.x] = threadIdx.x ? s[threadIdx.x - 1] : 0;\n\
                }\nEXPORT(own)";
    let run = |seed| {
        let device = with_kernel(seed, body)?;
        let out = device.alloc(64 * 4).unwrap();
        launch(&device, 1, 64, 256, &[Arg::Ptr(out)]).unwrap();
        Some(get(&device, out, 64))
    };
    let Some(ascending) = run(0) else { return };
    assert_eq!(ascending[1..], (0..63).collect::<Vec<_>>());
    assert!((1..4).any(|seed| run(seed).unwrap() != ascending));
}

#[test]
fn a_copy_nobody_waited_for_is_nan() {
    let run = |wait: &str| {
        let body = format!(
            "extern \"C\" __global__ void own(uint4* out, const uint4* in) {{\n\
             uint4* s = (uint4*)SMEM + threadIdx.x;\n\
             *s = make_uint4(1, 2, 3, 4);\n\
             cp_async16(s, in + threadIdx.x);\n\
             cp_async_commit();\n\
             {wait};\n\
             out[threadIdx.x] = *s;\n\
             }}\nEXPORT(own)"
        );
        let device = with_kernel(0, &body)?;
        let (input, out) = (put(&device, &words(1, 128)), device.alloc(512).unwrap());
        launch(&device, 1, 32, 512, &[Arg::Ptr(out), Arg::Ptr(input)]).unwrap();
        Some(get(&device, out, 128))
    };
    let Some(waited) = run("cp_async_wait<0>()") else { return };
    assert_eq!(waited, words(1, 128));
    assert_eq!(run("cp_async_wait<1>()").unwrap(), [u32::MAX; 128]);
    assert_eq!(run("").unwrap(), [u32::MAX; 128]);
}

#[test]
fn a_bulk_copy_nobody_waited_for_is_an_error() {
    let run = |wait: &str, announced: u32| {
        let body = format!(
            "extern \"C\" __global__ void own(u32* out, const u32* in) {{\n\
             u64* barrier = (u64*)SMEM;\n\
             u32* s = (u32*)(SMEM + 16);\n\
             if (threadIdx.x == 0) {{\n\
             mbarrier_init(barrier, 1);\n\
             mbarrier_expect(barrier, {announced});\n\
             bulk_copy(s, in, 128, barrier);\n\
             }}\n\
             __syncthreads();\n\
             {wait};\n\
             out[threadIdx.x] = s[threadIdx.x];\n\
             }}\nEXPORT(own)"
        );
        let device = with_kernel(0, &body)?;
        let (input, out) = (put(&device, &words(1, 32)), device.alloc(128).unwrap());
        let outcome = launch(&device, 1, 32, 144, &[Arg::Ptr(out), Arg::Ptr(input)]);
        Some(outcome.map(|()| get(&device, out, 32)))
    };
    let Some(waited) = run("mbarrier_wait(barrier, 0)", 128) else { return };
    assert_eq!(waited.unwrap(), words(1, 32));
    let says = |wait: &str, announced: u32, what: &str| {
        let error = run(wait, announced).unwrap().unwrap_err();
        assert!(error.contains(what), "{error}");
    };
    says("", 128, "a bulk copy to its shared memory is on its way");
    says("mbarrier_wait(barrier, 1)", 128, "a bulk copy to its shared memory is on its way");
    says("mbarrier_wait(barrier, 0)", 256, "waits for what no other thread does");
    says("mbarrier_wait(barrier + 1, 0)", 128, "nobody initialised");
}

#[test]
fn who_leaves_a_buffer_is_stopped_and_named() {
    let body = "extern \"C\" __global__ void own(float* p, i64 at, u32 write) {\n\
                if (threadIdx.x != 33) return;\n\
                if (write) p[at] = 1; else if (p[at] == 1) p[0] = 2;\n\
                }\nEXPORT(own)";
    let run = |at: i64, write: u32, freed: bool| {
        let device = with_kernel(0, body)?;
        let p = device.alloc(1000).unwrap();
        if freed {
            device.free(p).unwrap();
        }
        let outcome = launch(&device, 1, 64, 0, &[Arg::Ptr(p), Arg::U64(at as u64), Arg::U32(write)]);
        Some((outcome, device.synchronize().map_err(|e| e.to_string())))
    };
    let Some((inside, sound)) = run(249, 1, false) else { return };
    assert!(inside.is_ok() && sound.is_ok());
    says(
        run(252, 0, false).unwrap().0,
        &["block (0, 0, 0), thread 33: reads address", "9 bytes past the last of a buffer of 1000"],
    );
    says(run(252, 1, false).unwrap().0, &["thread 33: writes address", "9 bytes past the last"]);
    says(run(-1000, 0, false).unwrap().0, &["reads address", "4000 bytes before a buffer of 1000 bytes"]);
    says(run(0, 0, true).unwrap().0, &["in a buffer of 1000 bytes that was freed"]);
    // Within the last 16 bytes and just before the start there is no page to stop it: seen afterwards.
    for at in [251, -2] {
        let (outcome, after) = run(at, 1, false).unwrap();
        assert!(outcome.is_ok());
        says(after, &["a kernel has written", "a buffer of 1000 bytes"]);
    }
}

#[test]
fn shared_memory_ends_where_the_launch_said() {
    let body = "extern \"C\" __global__ void own(u32 at, u32* out) {\n\
                if (threadIdx.x == 5) out[0] = ((u32*)SMEM)[at];\n\
                }\nEXPORT(own)";
    for (at, good) in [(0, true), (255, true), (256, false)] {
        let Some(device) = with_kernel(0, body) else { return };
        let out = device.alloc(4).unwrap();
        let outcome = launch(&device, 1, 32, 1024, &[Arg::U32(at), Arg::Ptr(out)]);
        if good {
            outcome.unwrap();
            assert_eq!(get(&device, out, 1), [u32::MAX]);
        } else {
            says(outcome, &["thread 5: reads address", "at 1024 of 1024 bytes of shared memory"]);
        }
    }
}

#[test]
fn misaligned_and_impossible_addresses_and_divisions_by_zero_are_told_apart() {
    let body = "extern \"C\" __global__ void own(float** p, u32 kind, u32 zero) {\n\
                if (threadIdx.x != 3) return;\n\
                if (kind == 0) *(float4*)((float*)p + 1) = make_float4(0, 0, 0, 0);\n\
                if (kind == 1) p[0][0] = 1;\n\
                if (kind == 2) p[0] = p[1000 / zero];\n\
                if (kind == 3) load_weight((char*)p + 8);\n\
                }\nEXPORT(own)";
    for (kind, part) in [
        "thread 3: an address is not a multiple",
        "thread 3: reads or writes what cannot be an address",
        "thread 3: an integer is divided by zero",
        "thread 3: load_weight of address",
    ]
    .into_iter()
    .enumerate()
    {
        let Some(device) = with_kernel(0, body) else { return };
        let p = device.alloc(64).unwrap();
        device.fill(p, 0xf0, 64).unwrap();
        says(launch(&device, 1, 32, 0, &[Arg::Ptr(p), Arg::U32(kind as u32), Arg::U32(0)]), &[part]);
    }
}

#[test]
fn an_overlapped_kernel_must_wait_for_its_predecessor() {
    let body = "extern \"C\" __global__ void own(u32 wait) {\n\
                launch_dependents();\n\
                if (wait) wait_for_previous();\n\
                }\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    join(&device, Join::Overlapped, 2, 32, 0, &[Arg::U32(1)]).unwrap();
    says(join(&device, Join::Overlapped, 2, 32, 0, &[Arg::U32(0)]), &["never calls wait_for_previous"]);
}

#[test]
fn too_many_local_variables_are_an_error() {
    let large = "extern \"C\" __global__ void own(u32* out, u32 n) {\n\
                 volatile u32 local[20000];\n\
                 for (u32 i = 0; i < n; i++) local[i] = i;\n\
                 out[threadIdx.x] = local[n - 1];\n\
                 }\nEXPORT(own)";
    let Some(device) = with_kernel(0, large) else { return };
    says(device.compile(&[own()]).map_err(|e| e.to_string()), &["own.cu:6", "frame"]);

    let deep = "__device__ __noinline__ u32 deep(u32 n) {\n\
                volatile u32 local[256];\n\
                for (u32 i = 0; i < 256; i++) local[i] = n;\n\
                return n ? deep(n - 1) + local[n & 255] : 0;\n\
                }\n\
                extern \"C\" __global__ void own(u32* out, u32 n, u32 thread) {\n\
                if (threadIdx.x == thread) *out = deep(n);\n\
                }\nEXPORT(own)";
    for (kilobytes, thread, part) in [
        (48, 0, ""),
        (68, 0, "writes address"),
        (68, 5, "thread 5: its local variables need more than 66624 bytes"),
    ] {
        let device = with_kernel(0, deep).unwrap();
        let args = [Arg::Ptr(device.alloc(4).unwrap()), Arg::U32(kilobytes), Arg::U32(thread)];
        match launch(&device, 1, 32, 0, &args) {
            Ok(()) => assert_eq!(kilobytes, 48),
            wrong => says(wrong, &[part]),
        }
    }
}

#[test]
fn launches_a_device_refuses_are_refused() {
    let body = "extern \"C\" __global__ void own(const u32* p, float x, u64 n, int i) {}\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    let args = [Arg::Ptr(0), Arg::F32(1.0), Arg::U64(2), Arg::U32(3)];
    launch(&device, 3, 64, 0, &args).unwrap();
    says(launch(&device, 0, 64, 0, &args), &["a grid of [0, 1, 1] blocks"]);
    says(launch(&device, 1, 48, 0, &args), &["blocks of 48 threads"]);
    says(launch(&device, 1, 64, 0, &args[..3]), &["takes \"pfUu\", was given \"pfU\""]);
    says(launch(&device, 1, 64, 300_000, &args), &["300000 bytes of shared memory, a block has 232448"]);
    join(&device, Join::Cooperative, 6, 256, 0, &args).unwrap();
    says(join(&device, Join::Cooperative, 7, 256, 0, &args), &["7 blocks, but 6 are resident at once"]);
    says(join(&device, Join::Cooperative, 4, 1024, 0, &args), &["4 blocks, but 3 are resident at once"]);
    let kernel = device.kernel(&own(), "own", 100).unwrap();
    let launch = Launch { grid: [1, 1, 1], block: 32, smem: 101, join: Join::Plain };
    let refused = device.launch(kernel, launch, &args).unwrap_err().to_string();
    assert!(refused.contains("101 bytes of shared memory, but it was asked for with 100"), "{refused}");
    let missing = device.kernel(&own(), "other", 0).unwrap_err().to_string();
    assert!(missing.contains("own.cu has no kernel `other`"), "{missing}");
    device.synchronize().unwrap();
}

#[test]
fn a_kernel_that_does_not_compile_shows_the_compilers_words() {
    let Some(device) = with_kernel(0, "extern \"C\" __global__ void own() { nonsense; }\nEXPORT(own)") else {
        return;
    };
    let message = device.compile(&[own()]).unwrap_err().to_string();
    assert!(
        message.contains("own.cu") && message.contains("own.cu:2") && message.contains("nonsense"),
        "{message}"
    );
    let unknown = device.compile(&[Unit { file: "nowhere.cu", defines: vec![] }]).unwrap_err().to_string();
    assert!(unknown.contains("no kernel file `nowhere.cu`"), "{unknown}");
}

#[test]
fn a_define_makes_a_unit_of_its_own() {
    let body = "extern \"C\" __global__ void own(u32* out) { out[threadIdx.x] = N; }\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    let units: Vec<Unit> =
        (3..6).map(|n| Unit { file: "own.cu", defines: vec![("N", format!("{n}u"))] }).collect();
    device.compile(&units).unwrap();
    let out = device.alloc(128).unwrap();
    for (unit, n) in units.iter().zip(3..) {
        let kernel = device.kernel(unit, "own", 0).unwrap();
        let launch = Launch { grid: [1, 1, 1], block: 32, smem: 0, join: Join::Plain };
        device.launch(kernel, launch, &[Arg::Ptr(out)]).unwrap();
        assert_eq!(get(&device, out, 32), [n; 32]);
    }
}

#[test]
fn a_recorded_step_runs_when_it_is_replayed_and_as_often() {
    let body = "extern \"C\" __global__ void own(u32* p, u32 by) { p[threadIdx.x] += by; }\nEXPORT(own)";
    let Some(device) = with_kernel(0, body) else { return };
    let (p, q) = (put(&device, &[1; 32]), put(&device, &[0; 32]));
    let record = |keep| {
        device.begin_capture().unwrap();
        launch(&device, 1, 32, 0, &[Arg::Ptr(p), Arg::U32(10)]).unwrap();
        device.copy(q, p, 128).unwrap();
        device.fill(p + 4, 0, 4).unwrap();
        for refused in [device.synchronize(), device.upload(p, &[0]), device.alloc(4).map(|_| ())] {
            assert!(refused.unwrap_err().to_string().contains("not while a graph is captured"));
        }
        device.end_capture(keep).unwrap()
    };
    assert_eq!(record(false), None);
    let graph = record(true).unwrap();
    assert_eq!(get(&device, p, 2), [1, 1], "recorded, not run");
    for round in 1..4 {
        device.replay(graph).unwrap();
        assert_eq!(get(&device, p, 3), [1 + 10 * round, 0, 1 + 10 * round]);
    }
    assert_eq!(get(&device, q, 3), [31, 10, 31]);
    device.drop_graph(graph).unwrap();
    assert!(device.replay(graph).is_err() && device.drop_graph(graph).is_err());
}

#[test]
fn memory_is_nan_until_written_and_ranges_stay_in_their_buffer() {
    let Some(device) = device(settings()) else { return };
    let (a, b) = (device.alloc(40).unwrap(), device.alloc(512).unwrap());
    assert!(a % 16 == 0 && b % 256 == 0);
    assert!(get_floats(&device, a, 10).iter().all(|x| x.is_nan()));
    assert_eq!(device.memory().unwrap(), ((1 << 30) - 552, 1 << 30));
    device.copy(b + 8, a, 40).unwrap();
    for (outcome, part) in [
        (device.copy(b, a, 41), "copy from: 41 bytes"),
        (device.copy(b + 480, a, 40), "the last 8 bytes past the last of a buffer of 512 bytes"),
        (device.copy(a, a + 8, 16), "overlap"),
        (device.fill(a + 40, 0, 1), "fill: 1 bytes"),
        (device.upload(16, &[0]), "in no buffer"),
        (device.download(&mut [0; 8], b - 4), "the first is 4 bytes before a buffer of 512 bytes"),
        (device.free(a + 1), "is not the start of a buffer"),
        (device.alloc(1 << 31).map(|_| ()), "no 2147483648 bytes of memory"),
    ] {
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
    device.free(a).unwrap();
    assert!(device.free(a).unwrap_err().to_string().contains("was freed before"));
    assert!(device.download(&mut [0; 8], a).unwrap_err().to_string().contains("that was freed"));
    assert_eq!(device.memory().unwrap().0, (1 << 30) - 512);
}

#[test]
fn time_goes_on_between_marks() {
    let Some(device) = device(settings()) else { return };
    let (from, to) = (device.mark().unwrap(), device.mark().unwrap());
    assert!(device.elapsed(from, to).unwrap() >= 0.0);
    assert_eq!(device.name(), "emulated (3 multiprocessors)");
}

#[test]
fn without_a_compiler_one_sentence_says_so() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .env("CXX", "no-such-compiler")
        .args(["--exact", "time_goes_on_between_marks", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let sentence =
        "skipped: the emulated device needs a C++ compiler, and `no-such-compiler --version` fails: ";
    assert!(output.status.success() && text.contains(sentence), "{text}");
}
