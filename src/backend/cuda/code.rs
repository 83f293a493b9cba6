//! The kernels' machine code, made by `make kernels`: one module for each kind of GPU, which holds all kernels.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::error::{Error, Result, Status};

/// A module, packed.
pub struct Code {
    /// The compute capability it is for.
    pub capability: (i32, i32),
    /// Whether it is machine code, which runs on that generation alone; else PTX, which the driver compiles for anything newer.
    pub is_binary: bool,
    packed: &'static [u8],
}

macro_rules! code {
    ($capability:expr, $is_binary:literal, $file:literal) => {
        Code {
            capability: $capability,
            is_binary: $is_binary,
            packed: include_bytes!(concat!("kernels/compiled/", $file, ".gz")),
        }
    };
}

/// What there is, binaries first.
pub const CODE: [Code; 5] = [
    code!((12, 0), true, "sm_120.cubin"),
    code!((10, 0), true, "sm_100a.cubin"),
    code!((9, 0), true, "sm_90a.cubin"),
    code!((8, 0), true, "sm_80.cubin"),
    code!((8, 0), false, "compute_80.ptx"),
];

impl Code {
    /// What a GPU of this capability can load, best first: machine code runs on the same generation from its minor version on, that
    /// for features of one architecture (`a`) on this alone.
    pub fn fitting((major, minor): (i32, i32)) -> impl Iterator<Item = &'static Self> {
        CODE.iter().filter(move |code| {
            let (of, from) = code.capability;
            match (code.is_binary, of) {
                (true, 9 | 10) => (major, minor) == code.capability,
                (true, _) => major == of && minor >= from,
                (false, _) => (major, minor) >= code.capability,
            }
        })
    }

    /// The module, with the zero that PTX must end in.
    pub fn unpack(&self) -> Result<Vec<u8>> {
        let mut code = Vec::new();
        GzDecoder::new(self.packed)
            .read_to_end(&mut code)
            .map_err(|e| Error::new(Status::Internal, format!("the embedded kernels are damaged: {e}")))?;
        code.push(0);
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::params::Kernel;

    #[test]
    fn each_gpu_finds_its_code() {
        let names = |capability| Code::fitting(capability).map(|c| (c.capability.0, c.is_binary)).collect::<Vec<_>>();
        assert_eq!(names((7, 5)), []);
        assert_eq!(names((8, 0)), [(8, true), (8, false)]);
        assert_eq!(names((8, 9)), [(8, true), (8, false)]);
        assert_eq!(names((9, 0)), [(9, true), (8, false)]);
        assert_eq!(names((10, 3)), [(8, false)]);
        assert_eq!(names((12, 1)), [(12, true), (8, false)]);
    }

    #[test]
    fn all_kernels_are_in_all_code() {
        for code in &CODE {
            let unpacked = code.unpack().unwrap();
            for kernel in Kernel::ALL {
                let name = kernel.symbol().as_bytes();
                assert!(
                    unpacked.windows(name.len()).any(|part| part == name),
                    "{}: {:?}",
                    kernel.symbol(),
                    code.capability
                );
            }
        }
    }
}
