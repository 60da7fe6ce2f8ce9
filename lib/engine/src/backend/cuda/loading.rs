//! Filling matrices from files: several threads each read the next rows of some matrix, bring them into the device's
//! order in pinned memory and send them, so that reading, arranging and sending overlap, over several files at a time.
//!
//! A matrix has its memory at once and its contents by and by. Groups are taken from all waiting matrices in turn. The
//! first error ends the loading. Host memory is a few buffers a thread, whatever the size of the checkpoint.

use super::Cuda;
use super::fill::Fill;
use super::gpu::{Gpu, Ptr};
use super::stage::{LoadOptions, Stage};
use super::weights::Matrix;
use crate::Error;
use cute_checkpoint::LazyWeight;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What the threads share.
struct Shared {
    gpu: Arc<dyn Gpu>,
    options: LoadOptions,
    queue: Mutex<Queue>,
    /// something was queued, or the end is near
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Fill>,
    /// nothing is queued any more
    closed: bool,
    /// what is left is not wanted
    stopped: bool,
    error: Option<Error>,
    /// matrices whose values cannot be kept as was planned, by the name of their first weight
    odd: BTreeSet<String>,
}

/// The loading of a model, under way.
pub(super) struct Loading {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// memory of the matrices
    memory: Vec<Ptr>,
}

impl Loading {
    /// Starts the threads.
    pub(super) fn start(gpu: Arc<dyn Gpu>, options: LoadOptions) -> Result<Loading, Error> {
        let shared = Arc::new(Shared { gpu, options, queue: Mutex::default(), more: Condvar::new() });
        let mut loading = Loading { shared, threads: Vec::new(), memory: Vec::new() };
        for _ in 0..options.count() {
            let shared = loading.shared.clone();
            let thread = std::thread::Builder::new().name("load".into()).spawn(move || shared.serve());
            let thread = thread.map_err(|e| Error::Device(format!("no thread to load weights on: {e}")))?;
            loading.threads.push(thread);
        }
        Ok(loading)
    }

    /// Queues a matrix. An error of one queued earlier is reported here, if there is one already.
    pub(super) fn add(&mut self, matrix: &Matrix, weights: Vec<LazyWeight>) -> Result<(), Error> {
        let mut queue = self.shared.lock();
        if let Some(error) = queue.error.take() {
            return Err(error);
        }
        queue.waiting.extend(Fill::all(matrix, weights));
        self.shared.more.notify_all();
        Ok(())
    }

    /// Waits for what is queued, or drops it unless `keep`. What comes back: the matrices that must be planned anew,
    /// by the names of their first weights, and the memory of all.
    pub(super) fn end(mut self, keep: bool) -> Result<(BTreeSet<String>, Vec<Ptr>), Error> {
        let panicked = self.join(keep);
        let mut queue = self.shared.lock();
        match queue.error.take() {
            Some(error) => Err(error),
            None if panicked => Err(Error::Device("a thread that loads weights panicked".into())),
            None => Ok((std::mem::take(&mut queue.odd), std::mem::take(&mut self.memory))),
        }
    }

    /// Ends the threads; whether one has panicked.
    fn join(&mut self, keep: bool) -> bool {
        {
            let mut queue = self.shared.lock();
            queue.closed = true;
            queue.stopped |= !keep;
            self.shared.more.notify_all();
        }
        let ended: Vec<bool> = self.threads.drain(..).map(|thread| thread.join().is_err()).collect();
        ended.contains(&true)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.join(false);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn serve(&self) {
        // a panic leaves the others nothing to wait for
        let stop = StopOnPanic(self);
        let served = self.gpu.stage(self.options.buffer).and_then(|mut stage| {
            while let Some(group) = self.take() {
                if !group.send(&*self.gpu, &mut *stage, self.options)? {
                    self.lock().odd.insert(group.name().to_owned());
                }
            }
            stage.arrived()
        });
        drop(stop);
        if let Err(error) = served {
            let mut queue = self.lock();
            queue.stopped = true;
            queue.error.get_or_insert(error);
            self.more.notify_all();
        }
    }

    /// The next group of the next matrix; `None` at the end.
    fn take(&self) -> Option<Fill> {
        let mut queue = self.lock();
        loop {
            if queue.stopped {
                return None;
            }
            if let Some(mut fill) = queue.waiting.pop_front() {
                let group = fill.split(self.options.buffer);
                if !fill.is_empty() && !queue.odd.contains(fill.name()) {
                    queue.waiting.push_back(fill);
                }
                return Some(group);
            }
            if queue.closed {
                return None;
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct StopOnPanic<'a>(&'a Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().stopped = true;
            self.0.more.notify_all();
        }
    }
}

/// Fills a matrix on this thread, before it returns; whether its values could be kept as was planned.
pub(super) fn fill(gpu: &dyn Gpu, matrix: &Matrix, weights: Vec<LazyWeight>) -> Result<bool, Error> {
    let options = LoadOptions::default();
    let mut stage = super::stage::Plain::new(gpu, options.buffer);
    for mut fill in Fill::all(matrix, weights) {
        while !fill.is_empty() {
            if !fill.split(options.buffer).send(gpu, &mut stage as &mut dyn Stage, options)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Cuda {
    /// Loads a matrix before it returns.
    pub(super) fn load_now(&self, weights: Vec<LazyWeight>) -> Result<Matrix, Error> {
        let planned = Matrix::plan(&self.memory, &weights, false)?;
        if fill(self.gpu(), &planned, weights.clone())? {
            return Ok(planned);
        }
        planned.allocations().try_for_each(|at| self.memory.free(at))?;
        let wide = Matrix::plan(&self.memory, &weights, true)?;
        fill(self.gpu(), &wide, weights)?;
        Ok(wide)
    }

    /// What the memory of a matrix holds, all of its parts one behind the other.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn contents(&self, matrix: &Matrix) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        for part in matrix.parts() {
            let mut bytes = vec![0; part.layout.bytes(part.n, matrix.k)];
            self.gpu().download(&mut bytes, part.at)?;
            all.append(&mut bytes);
        }
        Ok(all)
    }

    /// Makes room for a matrix; it is filled by [`Cuda::finish_loading`] at the latest.
    pub(super) fn queue_loading(&self, weights: Vec<LazyWeight>) -> Result<Matrix, Error> {
        let matrix = Matrix::plan(&self.memory, &weights, self.is_odd(&weights))?;
        self.queue(matrix.allocations().collect(), vec![(matrix, weights)])?;
        Ok(matrix)
    }

    /// The same for experts.
    pub(super) fn queue_experts(&self, experts: Vec<Vec<LazyWeight>>) -> Result<Vec<Matrix>, Error> {
        let widen = experts.iter().any(|weights| self.is_odd(weights));
        let all = super::experts::plan(&self.memory, &experts, widen)?;
        let memory = all.iter().take(1).flat_map(Matrix::allocations).collect();
        self.queue(memory, all.iter().copied().zip(experts).collect())?;
        Ok(all)
    }

    /// Whether a matrix could not be kept as it had been planned.
    fn is_odd(&self, weights: &[LazyWeight]) -> bool {
        weights.first().is_some_and(|w| self.odd.borrow().contains(w.name()))
    }

    /// Queues matrices that lie in `memory`.
    fn queue(&self, memory: Vec<Ptr>, matrices: Vec<(Matrix, Vec<LazyWeight>)>) -> Result<(), Error> {
        let mut loading = self.loading.borrow_mut();
        if loading.is_none() {
            *loading = Some(Loading::start(self.memory.gpu.clone(), self.options.load)?);
        }
        let Some(loading) = &mut *loading else { return Ok(()) };
        loading.memory.extend(memory);
        matrices.into_iter().try_for_each(|(matrix, weights)| loading.add(&matrix, weights))
    }

    /// Waits for all matrices that are queued. False when some cannot be kept as planned: all are given back, and the
    /// next time these are planned otherwise.
    pub(super) fn finish_loading(&self, keep: bool) -> Result<bool, Error> {
        let Some(loading) = self.loading.take() else { return Ok(true) };
        let (odd, memory) = loading.end(keep)?;
        if odd.is_empty() {
            return Ok(true);
        }
        memory.into_iter().try_for_each(|at| self.memory.free(at))?;
        self.odd.borrow_mut().extend(odd);
        Ok(false)
    }
}
