//! What is freed while it works.

use sae::backend::Stream;
use sae::backend::cuda::CudaModel;
use sae::session::Session;

use crate::fake::Fake;
use crate::scene::{Memory, on_processor, options, sae};

#[test]
fn what_is_freed_while_it_works_ends_its_work_first() {
    let fake = Fake::new();
    let sae = sae();
    let mut processor = on_processor(&sae);
    for seed in 0..20 {
        fake.set("seed", seed);
        let stream = fake.stream(true);
        let model = CudaModel::new(sae.clone(), 0).unwrap();
        let mut sessions = [0, 1].map(|_| Session::new(model.clone(), options()).unwrap());
        // A session keeps its model.
        drop(model);
        let mut memory = [0, 1].map(Memory::new);
        for (i, session) in sessions.iter_mut().enumerate() {
            let on = if i == 0 { Stream::Host(stream.handle()) } else { Stream::Session };
            memory[i].encode(session, on).unwrap();
        }
        drop(sessions);
        for (i, memory) in memory.iter().enumerate() {
            let mut expected = Memory::new(i);
            expected.encode(&mut processor, Stream::Session).unwrap();
            assert_eq!(memory.results(), expected.results());
        }
        drop(stream);
        assert!(fake.is_clean());
    }
}
