//! Loading from files by groups on several threads: what lies on the device, what is said when something goes wrong, and
//! how much is ever held.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::{random_floats, root, tiny};
use cute_checkpoint::{Checkpoint, Dtype, Fp8, GlobalScale, LazyWeight, Nvfp4, Tensor, Weight};
use cute_engine::Error;
use cute_engine::backend::Backend;
use cute_engine::backend::cpu::Cpu;
use cute_engine::backend::cuda::gpu::{Arg, Gpu, Graph, Kernel, Launch, Mark, Ptr, Stage, Unit};
use cute_engine::backend::cuda::{Cuda, Layout, LoadOptions, Matrix, Options};
use cute_engine::model::Model;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use testing::device;

/// Groups of a tile or two, read a row or two at a time.
const SMALL: LoadOptions = LoadOptions { threads: 3, buffer: 5000, read: 300 };

fn cuda(gpu: &Arc<dyn Gpu>, load: LoadOptions) -> Cuda {
    Cuda::new(gpu.clone(), &tiny().config, Options { load, ..Options::default() }).unwrap()
}

/// What lies on the device when a stack is loaded by groups, and when it is loaded at once.
fn both(gpu: &Arc<dyn Gpu>, stacks: &[Vec<LazyWeight>]) -> Vec<(Matrix, Vec<u8>, Vec<u8>)> {
    let backend = cuda(gpu, SMALL);
    let queued = || stacks.iter().map(|s| backend.load(s.clone()).unwrap()).collect::<Vec<_>>();
    let mut matrices = queued();
    while !backend.end_loading(true).unwrap() {
        matrices = queued();
    }
    let at_once = |stack: &Vec<LazyWeight>| {
        let whole = stack.iter().map(|w| w.read_all().unwrap()).collect();
        backend.contents(&backend.packed_matrix(whole).unwrap()).unwrap()
    };
    matrices.into_iter().zip(stacks).map(|(m, s)| (m, backend.contents(&m).unwrap(), at_once(s))).collect()
}

fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let codes = random_floats(seed, n).into_iter().map(|x| ((x + 1.0) * 128.0) as u8);
    codes.map(|c| if c & 0x7f == 0x7f { 1 } else { c }).collect()
}

fn plain(dtype: Dtype, n: usize, k: usize, seed: u64) -> Weight {
    let values = random_floats(seed, n * k).into_iter();
    let bytes = match dtype {
        Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
    };
    Weight::Plain(Tensor { name: format!("plain {seed}"), dtype, shape: vec![n, k], bytes })
}

fn fp8(block: [usize; 2], n: usize, k: usize, seed: u64) -> Weight {
    let scales = random_floats(seed + 1, n.div_ceil(block[0]) * k.div_ceil(block[1]));
    Weight::Fp8(Fp8 { name: format!("fp8 {seed}"), shape: [n, k], codes: bytes(seed, n * k), scales, block })
}

fn nvfp4(n: usize, k: usize, seed: u64) -> Weight {
    Weight::Nvfp4(Nvfp4 {
        name: format!("nvfp4 {seed}"),
        shape: [n, k],
        codes: bytes(seed, n * k / 2),
        scales: bytes(seed + 1, n * k / 16),
        global: GlobalScale::Divisor(613.7),
    })
}

/// bf16 weights in the device's order, as kernels/weights.cuh says: `[n / 8, kp / 32, 8, 32]`.
fn tiles(stack: &[Weight]) -> Vec<u8> {
    let k = stack[0].shape()[1];
    let rows: Vec<f32> = stack.iter().flat_map(Weight::to_f32).collect();
    let (n, kp) = (rows.len() / k, Layout::Bf16 { pieces: 1 }.kp(k));
    let mut out = Vec::new();
    for tile in 0..n.div_ceil(8) {
        for run in 0..kp / 32 {
            for output in 8 * tile..8 * tile + 8 {
                for input in 32 * run..32 * run + 32 {
                    let there = output < n && input < k;
                    let value = if there { rows[output * k + input] } else { 0.0 };
                    out.extend(half::bf16::from_f32(value).to_le_bytes());
                }
            }
        }
    }
    out
}

#[test]
fn bf16_matrices_of_any_size_lie_in_the_order_of_the_kernels() {
    let Some(gpu) = device() else { return };
    let of = |shapes: &[usize], k: usize| -> Vec<Weight> {
        let weight = |(i, n): (usize, &usize)| plain(Dtype::BF16, *n, k, (k + i) as u64);
        shapes.iter().enumerate().map(weight).collect()
    };
    // one output, a part of a tile, boundaries inside of tiles, tiles larger than a buffer
    let stacks = [of(&[1], 1), of(&[7, 2, 20], 33), of(&[64, 5, 3], 256), of(&[16], 640), of(&[3, 9], 500)];
    let lazy: Vec<_> = stacks.iter().map(|s| s.iter().cloned().map(LazyWeight::from).collect()).collect();
    for ((matrix, found, _), stack) in both(&gpu, &lazy).into_iter().zip(&stacks) {
        assert!(found == tiles(stack), "{} outputs of {} inputs", matrix.n(), matrix.k);
    }
}

#[test]
fn a_matrix_read_in_groups_lies_on_the_device_as_one_read_at_once() {
    let Some(gpu) = device() else { return };
    let stacks: [Vec<Weight>; 9] = [
        vec![plain(Dtype::F16, 13, 70, 1), plain(Dtype::BF16, 30, 70, 2)],
        vec![plain(Dtype::F32, 9, 33, 3), plain(Dtype::F32, 9, 33, 4)], // gate and up, each with a tile of its own
        vec![fp8([128, 128], 200, 300, 5)],
        vec![fp8([1, 256], 24, 256, 7), fp8([40, 256], 40, 256, 9), plain(Dtype::BF16, 5, 256, 11)],
        vec![fp8([128, 64], 20, 200, 13)], // blocks across those of the kernels
        vec![nvfp4(37, 272, 15)],
        vec![nvfp4(64, 128, 17), nvfp4(8, 128, 19), plain(Dtype::F32, 4, 128, 21)],
        vec![nvfp4(12, 64, 23), nvfp4(12, 64, 25)], // not whole tiles
        vec![fp8([16, 128], 16, 128, 27), nvfp4(16, 128, 29)],
    ];
    let lazy: Vec<_> = stacks.iter().map(|s| s.iter().cloned().map(LazyWeight::from).collect()).collect();
    for (i, (_, found, expected)) in both(&gpu, &lazy).into_iter().enumerate() {
        assert!(!found.is_empty() && found == expected, "stack {i}");
    }
}

#[test]
fn every_matrix_of_every_published_form_is_read_from_its_files_in_groups() {
    let Some(gpu) = device() else { return };
    let mut models = 0;
    let mut forms: Vec<_> = std::fs::read_dir(root().join("tests/golden/formats"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    forms.sort();
    for dir in forms {
        let c = Checkpoint::open(&dir).unwrap();
        let matrices = c.tensor_names().filter(|name| {
            let shape = c.lazy(name).unwrap().shape().len();
            shape == 2 && name.ends_with(".weight")
        });
        let mut stacks: Vec<Vec<LazyWeight>> = Vec::new();
        for name in matrices {
            let up = name.replace("gate_proj", "up_proj");
            let names = if up != *name { vec![name, &up] } else { vec![name] };
            stacks.push(names.into_iter().map(|n| c.lazy(n).unwrap()).collect());
        }
        for (stack, (_, found, expected)) in stacks.iter().zip(both(&gpu, &stacks)) {
            assert!(found == expected, "{}: {}", dir.display(), stack[0].name());
        }
        models += 1;
    }
    assert!(models > 5, "{models} models");
}

#[test]
fn a_matrix_with_nan_is_loaded_once_more_in_the_form_that_holds_it() {
    let Some(gpu) = device() else { return };
    let mut odd = fp8([128, 128], 64, 128, 1);
    if let Weight::Fp8(w) = &mut odd {
        w.codes[40 * 128 + 3] = 0xff;
    }
    let lazy = |w: &Weight| vec![LazyWeight::from(w.clone())];
    let even = fp8([128, 128], 64, 128, 5);
    let [(wide, found, expected), (kept, ..)] =
        <[_; 2]>::try_from(both(&gpu, &[lazy(&odd), lazy(&even)])).ok().unwrap();
    assert!(found == expected);
    assert_eq!((wide.pieces().is_some(), kept.pieces()), (true, None));
    // what was planned first is given back
    let counted = Arc::new(Counted::on(gpu));
    let backend = cuda(&(counted.clone() as Arc<dyn Gpu>), SMALL);
    let before = counted.live.load(Ordering::Relaxed);
    let mut rounds = 0;
    loop {
        for w in [&odd, &even] {
            backend.load(lazy(w)).unwrap();
        }
        rounds += 1;
        if backend.end_loading(true).unwrap() {
            break;
        }
    }
    assert_eq!((rounds, counted.live.load(Ordering::Relaxed) - before), (2, 2));
}

/// A copy of a golden model to damage.
fn copy(name: &str) -> (tempfile::TempDir, Checkpoint) {
    let (from, to) = (root().join("tests/golden/formats").join(name), tempfile::tempdir().unwrap());
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), to.path().join(file)).unwrap();
    }
    let checkpoint = Checkpoint::open(to.path()).unwrap();
    (to, checkpoint)
}

fn shorten(dir: &Path, bytes: u64) -> u64 {
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("model.safetensors")).unwrap();
    let full = file.metadata().unwrap().len();
    file.set_len(full - bytes).unwrap();
    full
}

#[test]
fn a_file_shortened_after_it_was_opened_is_named_with_tensor_and_offset_on_every_device() {
    let Some(gpu) = device() else { return };
    let (dir, c) = copy("fp8-block");
    let full = shorten(dir.path(), 1000);
    let check = |error: Option<Error>| {
        let said = error.expect("an error").to_string();
        let file = dir.path().join("model.safetensors").display().to_string();
        let at = format!(", byte {} of the file: {} bytes now, {full} when", full - 1000, full - 1000);
        assert!(said.starts_with(&format!("{file}: tensor ")) && said.contains(&at), "{said}");
    };
    for load in [SMALL, LoadOptions::default(), LoadOptions { threads: 1, ..SMALL }] {
        let backend = Cuda::new(gpu.clone(), &c.config, Options { load, ..Options::default() }).unwrap();
        check(Model::load(&backend, &c, 64).err());
    }
    check(Model::load(&Cpu::default(), &c, 64).err());
}

#[test]
fn a_device_that_fails_in_the_middle_ends_the_loading_with_what_it_said() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let loaded = |fail_at: usize| {
        let counted = Arc::new(Counted { fail_at, ..Counted::on(gpu.clone()) });
        let options = Options { load: SMALL, ..Options::default() };
        let backend = Cuda::new(counted.clone(), &checkpoint.config, options).unwrap();
        let error = Model::load(&backend, &checkpoint, 64).err().map(|e| e.to_string());
        (counted.sent.load(Ordering::Relaxed), error)
    };
    let (all, error) = loaded(usize::MAX);
    assert_eq!(error, None);
    for fail_at in [0, 1, 17, 40] {
        let (sent, error) = loaded(fail_at);
        assert_eq!(error, Some(format!("send {fail_at} failed")));
        assert!(sent < all / 2, "{sent} of {all} sends: the others went on");
    }
}

#[test]
fn loading_holds_a_buffer_a_thread_and_no_matrix() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let largest = checkpoint.tensor_names().map(|name| checkpoint.lazy(name).unwrap());
    let largest = largest.map(|w| w.rows() * w.row_bytes()).max().unwrap();
    assert!(largest > 4 * SMALL.buffer);
    let counted = Arc::new(Counted::on(gpu));
    let options = Options { load: SMALL, ..Options::default() };
    let backend = Cuda::new(counted.clone(), &checkpoint.config, options).unwrap();
    let before = checkpoint.bytes_read();
    Model::load(&backend, &checkpoint, 64).unwrap();
    assert_eq!(counted.stages.load(Ordering::Relaxed), SMALL.threads);
    assert_eq!(counted.largest_stage.load(Ordering::Relaxed), SMALL.buffer);
    // what goes past the stages are vectors, tables of angles, and tiles that are larger than a buffer
    assert!(counted.largest_upload.load(Ordering::Relaxed) < largest / 2);
    // a tied matrix is read once, as everything is
    assert_eq!(checkpoint.bytes_read() - before, checkpoint.weight_bytes());
}

/// A device that counts what loading asks of it, and fails at one of the transfers of its stages.
struct Counted {
    inner: Arc<dyn Gpu>,
    fail_at: usize,
    sent: AtomicUsize,
    stages: AtomicUsize,
    largest_stage: AtomicUsize,
    largest_upload: AtomicUsize,
    /// allocations that were not given back
    live: AtomicUsize,
}

impl Counted {
    fn on(inner: Arc<dyn Gpu>) -> Counted {
        let [sent, stages, largest_stage, largest_upload, live] =
            std::array::from_fn(|_| AtomicUsize::new(0));
        Counted { inner, fail_at: usize::MAX, sent, stages, largest_stage, largest_upload, live }
    }
}

struct CountedStage<'a>(&'a Counted, Box<dyn Stage + 'a>);

impl Stage for CountedStage<'_> {
    fn next(&mut self) -> Result<&mut [u8], Error> {
        self.1.next()
    }
    fn send(&mut self, to: Ptr, bytes: Range<usize>) -> Result<(), Error> {
        match self.0.sent.fetch_add(1, Ordering::Relaxed) {
            n if n == self.0.fail_at => Err(Error::Device(format!("send {n} failed"))),
            _ => self.1.send(to, bytes),
        }
    }
    fn arrived(&mut self) -> Result<(), Error> {
        self.1.arrived()
    }
}

impl Gpu for Counted {
    fn stage(&self, bytes: usize) -> Result<Box<dyn Stage + '_>, Error> {
        self.stages.fetch_add(1, Ordering::Relaxed);
        self.largest_stage.fetch_max(bytes, Ordering::Relaxed);
        Ok(Box::new(CountedStage(self, self.inner.stage(bytes)?)))
    }
    fn upload(&self, to: Ptr, from: &[u8]) -> Result<(), Error> {
        self.largest_upload.fetch_max(from.len(), Ordering::Relaxed);
        self.inner.upload(to, from)
    }
    fn name(&self) -> String {
        self.inner.name()
    }
    fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors()
    }
    fn shared_memory(&self) -> u32 {
        self.inner.shared_memory()
    }
    fn wgmma(&self) -> bool {
        self.inner.wgmma()
    }
    fn memory(&self) -> Result<(u64, u64), Error> {
        self.inner.memory()
    }
    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.inner.alloc(bytes)
    }
    fn free(&self, at: Ptr) -> Result<(), Error> {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.inner.free(at)
    }
    fn download(&self, to: &mut [u8], from: Ptr) -> Result<(), Error> {
        self.inner.download(to, from)
    }
    fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<(), Error> {
        self.inner.copy(to, from, bytes)
    }
    fn fill(&self, to: Ptr, byte: u8, bytes: usize) -> Result<(), Error> {
        self.inner.fill(to, byte, bytes)
    }
    fn compile(&self, units: &[Unit]) -> Result<(), Error> {
        self.inner.compile(units)
    }
    fn kernel(&self, unit: &Unit, name: &str, smem: u32) -> Result<Kernel, Error> {
        self.inner.kernel(unit, name, smem)
    }
    fn occupancy(&self, kernel: Kernel, block: u32, smem: u32) -> Result<u32, Error> {
        self.inner.occupancy(kernel, block, smem)
    }
    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), Error> {
        self.inner.launch(kernel, launch, args)
    }
    fn begin_capture(&self) -> Result<(), Error> {
        self.inner.begin_capture()
    }
    fn end_capture(&self, keep: bool) -> Result<Option<Graph>, Error> {
        self.inner.end_capture(keep)
    }
    fn replay(&self, graph: Graph) -> Result<(), Error> {
        self.inner.replay(graph)
    }
    fn drop_graph(&self, graph: Graph) -> Result<(), Error> {
        self.inner.drop_graph(graph)
    }
    fn synchronize(&self) -> Result<(), Error> {
        self.inner.synchronize()
    }
    fn mark(&self) -> Result<Mark, Error> {
        self.inner.mark()
    }
    fn elapsed(&self, from: Mark, to: Mark) -> Result<f32, Error> {
        self.inner.elapsed(from, to)
    }
}
