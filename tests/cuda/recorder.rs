//! A driver that does nothing but write down what is asked of it. Its memory has addresses, but nothing is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sae::backend::cuda::params::{DevicePtr, Kernel, Params};
use sae::backend::cuda::{CaptureId, Driver, EventHandle, Facts, Pinned, Shape, SharedMemory, StreamHandle, When};
use sae::error::{Error, Result, Status};
use sae::tensor::{DType, Device, DeviceKind, Tensor, TensorMut};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Enter,
    Leave,
    Allocate,
    Free,
    Upload,
    Zero,
    Fill { at: u64, word: u32, times: usize, stream: StreamHandle },
    Launch(Launch),
    CheckStream(StreamHandle),
    Capture(StreamHandle),
    Pin(StreamHandle),
    Record(EventHandle, StreamHandle, When),
    WaitFor(EventHandle, StreamHandle, When),
    Await(EventHandle),
    Synchronize(StreamHandle),
    Fault(StreamHandle),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Launch {
    pub kernel: Kernel,
    pub shape: Shape,
    pub stream: StreamHandle,
    params: Vec<u8>,
}

impl Launch {
    pub(crate) fn params<P: Params>(&self) -> P {
        assert_eq!(self.kernel, P::KERNEL);
        bytemuck::pod_read_unaligned(&self.params)
    }
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// What is allocated: where, and how many bytes.
    blocks: BTreeMap<u64, usize>,
    shared: Vec<*mut u64>,
    streams: Vec<StreamHandle>,
    events_made: Vec<EventHandle>,
    made: u64,
    depth: usize,
    /// The capture that host's streams are in.
    capture: Option<CaptureId>,
    /// What graphs keep.
    pinned: Vec<Pinned>,
    unpinnable: bool,
    /// The launch that fails, counted from 0.
    broken_launch: Option<usize>,
    foreign_streams: bool,
    memory_left: Option<usize>,
}

unsafe impl Send for State {}

pub(crate) struct Recorder {
    facts: Facts,
    state: Mutex<State>,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        let facts =
            Facts { ordinal: 1, name: "a device of paper".to_owned(), capability: (9, 0), multiprocessors: 132 };
        Arc::new(Self { facts, state: Mutex::default() })
    }

    fn note(&self, event: Event) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        assert!(state.depth > 0 || event == Event::Enter, "{event:?} outside of the device");
        state.events.push(event);
        state
    }

    fn note_mark(&self, asked: Event, event: EventHandle, stream: StreamHandle, when: When) {
        let state = self.note(asked);
        assert!(state.events_made.contains(&event));
        let captured = state.capture.is_some() && !state.streams.contains(&stream);
        assert!(captured || when == When::Now, "only graphs are launched again");
    }

    /// What was asked since the last time.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.state.lock().unwrap().events)
    }

    /// The launches since the last time.
    pub(crate) fn launches(&self) -> Vec<Launch> {
        let launch = |event| if let Event::Launch(launch) = event { Some(launch) } else { None };
        self.take().into_iter().filter_map(launch).collect()
    }

    /// Has all streams but the library's own be in a capture from now on, or in none.
    pub(crate) fn capture(&self, capture: Option<u64>) {
        self.state.lock().unwrap().capture = capture.map(CaptureId);
    }

    /// Has graphs refuse to keep anything.
    pub(crate) fn refuse_pins(&self, on: bool) {
        self.state.lock().unwrap().unpinnable = on;
    }

    /// Destroys all graphs; gives what they kept.
    pub(crate) fn destroy_graphs(&self) -> Vec<Pinned> {
        std::mem::take(&mut self.state.lock().unwrap().pinned)
    }

    /// Makes the launch of this number from now on fail.
    pub(crate) fn break_launch(&self, number: Option<usize>) {
        self.state.lock().unwrap().broken_launch = number;
    }

    pub(crate) fn refuse_streams(&self) {
        self.state.lock().unwrap().foreign_streams = true;
    }

    pub(crate) fn limit_memory(&self, bytes: usize) {
        self.state.lock().unwrap().memory_left = Some(bytes);
    }

    /// Bytes of the device's memory in use.
    pub(crate) fn allocated(&self) -> usize {
        self.state.lock().unwrap().blocks.values().sum()
    }

    /// Whether everything was given back, and every thread left as it entered.
    pub(crate) fn is_clean(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.blocks.is_empty()
            && state.shared.is_empty()
            && state.streams.is_empty()
            && state.events_made.is_empty()
            && state.depth == 0
    }

    pub(crate) fn is_left(&self) -> bool {
        self.state.lock().unwrap().depth == 0
    }
}

unsafe impl Driver for Recorder {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn enter(&self) -> Result<u32> {
        let mut state = self.state.lock().unwrap();
        state.events.push(Event::Enter);
        state.depth += 1;
        Ok(state.depth as u32)
    }

    fn leave(&self, entered: u32) {
        let mut state = self.note(Event::Leave);
        assert_eq!(state.depth as u32, entered, "left in another order than entered");
        state.depth -= 1;
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        let mut state = self.note(Event::Allocate);
        assert!(bytes > 0);
        if let Some(left) = &mut state.memory_left {
            match left.checked_sub(bytes) {
                Some(rest) => *left = rest,
                None => return Err(Error::new(Status::OutOfMemory, "the paper is full")),
            }
        }
        state.made += 1;
        let at = state.made << 40;
        state.blocks.insert(at, bytes);
        Ok(DevicePtr(at))
    }

    unsafe fn free(&self, memory: DevicePtr) {
        assert!(self.note(Event::Free).blocks.remove(&memory.0).is_some());
    }

    fn allocate_shared(&self, bytes: usize) -> Result<SharedMemory> {
        assert_eq!(bytes, 8);
        let host = Box::into_raw(Box::new(0u64));
        self.note(Event::Allocate).shared.push(host);
        Ok(SharedMemory { host: host.cast(), device: DevicePtr(host.addr() as u64) })
    }

    unsafe fn free_shared(&self, memory: SharedMemory) {
        let host = memory.host.cast::<u64>();
        self.note(Event::Free).shared.retain(|kept| *kept != host);
        drop(unsafe { Box::from_raw(host) });
    }

    unsafe fn upload(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        let state = self.note(Event::Upload);
        let (at, bytes) = state.blocks.range(..=to.0).next_back().unwrap();
        assert!(to.0 + from.len() as u64 <= at + *bytes as u64);
        Ok(())
    }

    unsafe fn zero(&self, to: DevicePtr, bytes: usize) -> Result<()> {
        assert!(self.note(Event::Zero).blocks[&to.0] >= bytes);
        Ok(())
    }

    unsafe fn fill(&self, to: DevicePtr, word: u32, times: usize, stream: StreamHandle) -> Result<()> {
        assert!(to != DevicePtr::NULL && times > 0);
        drop(self.note(Event::Fill { at: to.0, word, times, stream }));
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, shape: Shape, stream: StreamHandle, params: &[u8]) -> Result<()> {
        let mut state = self.note(Event::Launch(Launch { kernel, shape, stream, params: params.to_vec() }));
        assert!(shape.grid.0 > 0 && (1..=65535).contains(&shape.grid.1) && shape.block.is_multiple_of(32));
        match &mut state.broken_launch {
            Some(0) => Err(Error::new(Status::DeviceFault, "an illegal address")),
            Some(number) => {
                *number -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn create_stream(&self) -> Result<StreamHandle> {
        let mut state = self.note(Event::Allocate);
        state.made += 1;
        let stream = StreamHandle(state.made);
        state.streams.push(stream);
        Ok(stream)
    }

    unsafe fn destroy_stream(&self, stream: StreamHandle) {
        self.note(Event::Free).streams.retain(|kept| *kept != stream);
    }

    fn check_stream(&self, stream: StreamHandle) -> Result<()> {
        match self.note(Event::CheckStream(stream)).foreign_streams {
            true => Err(Error::new(Status::InvalidArgument, "the stream is not one of the primary context")),
            false => Ok(()),
        }
    }

    fn capture(&self, stream: StreamHandle) -> Result<Option<CaptureId>> {
        let state = self.note(Event::Capture(stream));
        assert!(!state.streams.contains(&stream), "nobody captures a stream of ours");
        Ok(state.capture)
    }

    fn pin(&self, stream: StreamHandle, kept: Pinned) -> Result<()> {
        let mut state = self.note(Event::Pin(stream));
        assert!(state.capture.is_some() && !state.streams.contains(&stream), "there is no graph");
        if state.unpinnable {
            return Err(Error::new(Status::OutOfMemory, "the graph is full"));
        }
        state.pinned.push(kept);
        Ok(())
    }

    fn create_event(&self) -> Result<EventHandle> {
        let mut state = self.note(Event::Allocate);
        state.made += 1;
        let event = EventHandle(state.made);
        state.events_made.push(event);
        Ok(event)
    }

    unsafe fn destroy_event(&self, event: EventHandle) {
        self.note(Event::Free).events_made.retain(|kept| *kept != event);
    }

    fn record(&self, event: EventHandle, stream: StreamHandle, when: When) -> Result<()> {
        self.note_mark(Event::Record(event, stream, when), event, stream, when);
        Ok(())
    }

    fn wait_for(&self, event: EventHandle, stream: StreamHandle, when: When) -> Result<()> {
        self.note_mark(Event::WaitFor(event, stream, when), event, stream, when);
        Ok(())
    }

    fn await_event(&self, event: EventHandle) -> Result<()> {
        assert!(self.note(Event::Await(event)).events_made.contains(&event));
        Ok(())
    }

    fn synchronize(&self, stream: StreamHandle) -> Result<()> {
        drop(self.note(Event::Synchronize(stream)));
        Ok(())
    }

    fn fault(&self, stream: StreamHandle) -> Result<()> {
        match self.note(Event::Fault(stream)).broken_launch {
            Some(0) => Err(Error::new(Status::DeviceFault, "an illegal address")),
            _ => Ok(()),
        }
    }
}

/// Where the recorder's tensors are.
pub(crate) const PLACE: Device = Device { kind: DeviceKind::Cuda, id: 1 };

/// A tensor that is said to be on the device; nothing is there.
pub(crate) fn tensor(at: u64, dtype: DType, shape: &[usize], strides: Option<&[i64]>) -> Tensor<'static> {
    unsafe { Tensor::from_raw(at as *const u8, dtype, PLACE, shape, strides).unwrap() }
}

/// The same to write.
pub(crate) fn tensor_mut(at: u64, dtype: DType, shape: &[usize], strides: Option<&[i64]>) -> TensorMut<'static> {
    unsafe { TensorMut::from_raw(at as *mut u8, dtype, PLACE, shape, strides).unwrap() }
}
