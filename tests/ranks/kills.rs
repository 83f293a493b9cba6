//! Ranks as processes, killed again and again: the others end by themselves, and those that go on end where an unbroken run does.
//!
//! This process is where they meet: each rank has a connection to it. When one is killed its connection ends, and then all do,
//! as a host's communicator would have it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use sae::backend::Pool;
use sae::collective::{Axis, Collective, Ranks};
use sae::training::{TrainOptions, Trainer};
use sae::{Error, Result, Status};

use crate::runs::{D, activations, options, view};

const DATA: usize = 2;
const LATENTS: usize = 2;
const RANKS: usize = DATA * LATENTS;
const ROWS: usize = 16;
const KILLS: u64 = 20;
const STEPS: u64 = 120;
/// A checkpoint after so many steps: most of the time goes into them.
const EVERY: u64 = 2;
/// What a rank exits with when others cannot be reached.
const LOST: i32 = 7;
const FOLDER: &str = "SAE_TEST_RANKS_FOLDER";
const SOCKET: &str = "SAE_TEST_RANKS_SOCKET";
const RANK: &str = "SAE_TEST_RANKS_RANK";
const THREADS: &str = "SAE_TEST_RANKS_THREADS";

/// A rank's connection.
struct Connection(Mutex<UnixStream>);

impl Collective for Connection {
    fn all_gather(&self, axis: Axis, mine: &[u8], all: &mut [u8]) -> Result<()> {
        let mut stream = self.0.lock().unwrap();
        let mut talk = || {
            stream.write_all(&[axis as u8])?;
            stream.write_all(&(mine.len() as u64).to_le_bytes())?;
            stream.write_all(mine)?;
            stream.read_exact(all)
        };
        talk().map_err(|error: std::io::Error| Error::new(Status::Collective, error.to_string()))
    }
}

/// Where ranks meet: brings together what those of an axis sent, until a connection ends.
fn serve(streams: &[UnixStream]) {
    let receive = |rank: usize| -> std::io::Result<(u8, Vec<u8>)> {
        let (mut stream, mut axis, mut len) = (&streams[rank], [0], [0; 8]);
        stream.read_exact(&mut axis)?;
        stream.read_exact(&mut len)?;
        let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
        stream.read_exact(&mut bytes)?;
        Ok((axis[0], bytes))
    };
    let meet = || -> std::io::Result<()> {
        loop {
            let sent: Vec<(u8, Vec<u8>)> = (0..RANKS).map(receive).collect::<std::io::Result<_>>()?;
            for (rank, mut stream) in streams.iter().enumerate() {
                let (axis, len) = (sent[rank].0, sent[rank].1.len());
                let together = |other: &usize| match axis {
                    0 => other % LATENTS == rank % LATENTS,
                    _ => other / LATENTS == rank / LATENTS,
                };
                let parts = (0..RANKS).filter(together).map(|other| {
                    assert_eq!((sent[other].0, sent[other].1.len()), (axis, len), "ranks are out of step");
                    &sent[other].1[..]
                });
                let all: Vec<u8> = parts.flatten().copied().collect();
                stream.write_all(&all)?;
            }
        }
    };
    drop(meet());
    streams.iter().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Both)));
}

/// A rank; not a test by itself.
#[test]
#[ignore = "a child of the test below"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let mut stream = UnixStream::connect(std::env::var_os(SOCKET).unwrap()).unwrap();
    stream.write_all(&[number(RANK) as u8]).unwrap();
    let ranks = Ranks::new(Box::new(Connection(Mutex::new(stream))), number(RANK), DATA, LATENTS).unwrap();
    match train(&folder, &ranks, Pool::new(number(THREADS)).unwrap()) {
        Ok(()) => {}
        Err(error) if error.status() == Status::Collective => std::process::exit(LOST),
        Err(error) => panic!("{error}"),
    }
}

fn train(folder: &Path, ranks: &Ranks, pool: Pool) -> Result<()> {
    let checkpoint = folder.join("checkpoint.safetensors");
    // All look before one can write.
    let mut trainer = if checkpoint.exists() {
        Trainer::resume_among(folder, &TrainOptions::default(), pool, ranks.clone())?
    } else {
        let mut trainer = Trainer::among(&options(), pool, ranks.clone())?;
        trainer.init_from(&view(&activations(1, 300)))?;
        trainer
    };
    while trainer.progress().unwrap().step < STEPS {
        let step = trainer.progress().unwrap().step;
        let x = activations(step + 2, ROWS * DATA);
        let place = ranks.place(Axis::Data);
        trainer.step(&view(&x[place * ROWS * D..(place + 1) * ROWS * D]).into())?;
        if (step + 1).is_multiple_of(EVERY) {
            trainer.save(folder)?;
        }
    }
    Ok(())
}

fn spawn(folder: &Path, socket: &Path, rank: usize, threads: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kills::child", "--ignored", "--quiet"]).env(FOLDER, folder).env(SOCKET, socket);
    command.env(RANK, rank.to_string()).env(THREADS, threads.to_string());
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Lets a grid run; `watch` is called with its processes while it does. Gives how they ended.
fn life(folder: &Path, threads: impl Fn(usize) -> u64, watch: impl FnOnce(&mut [Child])) -> Vec<Option<i32>> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut children: Vec<Child> = (0..RANKS).map(|rank| spawn(folder, &socket, rank, threads(rank))).collect();
    let mut streams: Vec<Option<UnixStream>> = (0..RANKS).map(|_| None).collect();
    for _ in 0..RANKS {
        let (mut stream, _) = listener.accept().unwrap();
        let mut rank = [0];
        stream.read_exact(&mut rank).unwrap();
        streams[usize::from(rank[0])] = Some(stream);
    }
    let streams: Vec<UnixStream> = streams.into_iter().map(Option::unwrap).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&streams));
        watch(&mut children);
        children.iter_mut().map(|child| child.wait().unwrap().code()).collect()
    })
}

/// The step of the checkpoint in a folder.
fn step(folder: &Path) -> u64 {
    let trainer = Trainer::resume(folder, &TrainOptions::default(), Pool::serial());
    trainer.map_or(0, |trainer| trainer.progress().unwrap().step)
}

/// All that a checkpoint holds, as one process would save it.
fn whole(folder: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let trainer = Trainer::resume(folder, &TrainOptions::default(), Pool::serial()).unwrap();
    trainer.save(dir.path()).unwrap();
    std::fs::read(dir.path().join("checkpoint.safetensors")).unwrap()
}

/// Whether the last save in a folder was not completed.
fn cut_off(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    names.iter().any(|name| name.ends_with(".partial")) || names.len() != 1 + LATENTS && !names.is_empty()
}

#[test]
fn killed_twenty_times_a_grid_ends_with_the_bits_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let [unbroken, broken] = ["unbroken", "broken"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(&broken).unwrap();
    assert_eq!(life(&unbroken, |_| 1, |_| ()), [Some(0); RANKS]);
    assert_eq!(step(&unbroken), STEPS);

    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut below = |bound: u64| u64::from(random.next_u32()) % bound;
    let mut while_saving = 0;
    for kill in 0..KILLS {
        // Each life comes further than the last, so that they neither reach the end nor stay at the start.
        let until = kill * (STEPS / (KILLS + 2)) + below(STEPS / (KILLS + 2));
        let (victim, later, threads) = (below(RANKS as u64) as usize, below(4000), below(3));
        let ends = life(
            &broken,
            |rank| 1 + (threads + rank as u64) % 3,
            |children| {
                let began = Instant::now();
                while step(&broken) < until {
                    assert!(began.elapsed() < Duration::from_secs(120), "step {} of {until}", step(&broken));
                    std::thread::sleep(Duration::from_micros(300));
                }
                std::thread::sleep(Duration::from_micros(later));
                children[victim].kill().unwrap();
                let began = Instant::now();
                while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
                    assert!(began.elapsed() < Duration::from_secs(30), "the others still wait");
                    std::thread::sleep(Duration::from_millis(1));
                }
            },
        );
        for (rank, end) in ends.iter().enumerate() {
            let expected = if rank == victim { None } else { Some(LOST) };
            assert_eq!(*end, expected, "kill {kill}: rank {rank} of {ends:?}, of which {victim} was killed");
        }
        while_saving += u64::from(cut_off(&broken));
    }
    println!("{while_saving} of {KILLS} kills hit a checkpoint as it was written");
    assert!(while_saving > 0, "no kill hit a checkpoint as it was written");
    assert_eq!(life(&broken, |rank| 1 + rank as u64 % 2, |_| ()), [Some(0); RANKS]);
    assert!(!cut_off(&broken), "what was left over is gone");
    assert!(whole(&broken) == whole(&unbroken));
}
