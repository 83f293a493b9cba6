//! What a C program would hand in: memory, descriptions of it, and handles.

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

use sae::capi::*;

pub(crate) const F32: sae_dtype = sae_dtype { code: SAE_DTYPE_FLOAT, bits: 32, lanes: 1 };
pub(crate) const I32: sae_dtype = sae_dtype { code: SAE_DTYPE_INT, bits: 32, lanes: 1 };
pub(crate) const F16: sae_dtype = sae_dtype { code: SAE_DTYPE_FLOAT, bits: 16, lanes: 1 };
pub(crate) const BF16: sae_dtype = sae_dtype { code: SAE_DTYPE_BFLOAT, bits: 16, lanes: 1 };

/// Memory, and a tensor over it.
pub(crate) struct Array {
    pub(crate) memory: Vec<u32>,
    pub(crate) shape: [i64; 3],
    pub(crate) strides: [i64; 3],
    pub(crate) tensor: sae_tensor,
}

impl Array {
    pub(crate) fn new(memory: Vec<u32>, dtype: sae_dtype, dims: &[i64]) -> Box<Self> {
        let mut shape = [1; 3];
        shape[..dims.len()].copy_from_slice(dims);
        let tensor = sae_tensor {
            data: null_mut(),
            device: sae_device { device_type: SAE_DEVICE_CPU, device_id: 0 },
            ndim: dims.len() as i32,
            dtype,
            shape: null_mut(),
            strides: null_mut(),
            byte_offset: 0,
        };
        let strides = match *dims {
            [_, layers, d] => [layers * d, d, 1],
            [_, d] => [d, 1, 0],
            _ => [1, 0, 0],
        };
        let mut made = Box::new(Self { memory, shape, strides, tensor });
        made.tensor.data = made.memory.as_mut_ptr().cast();
        made.tensor.shape = made.shape.as_mut_ptr();
        made.tensor.strides = made.strides.as_mut_ptr();
        made
    }

    pub(crate) fn f32(values: &[f32], dims: &[i64]) -> Box<Self> {
        assert_eq!(values.len() as i64, dims.iter().product::<i64>());
        Self::new(values.iter().map(|v| v.to_bits()).collect(), F32, dims)
    }

    pub(crate) fn i32(values: &[i32], dims: &[i64]) -> Box<Self> {
        assert_eq!(values.len() as i64, dims.iter().product::<i64>());
        Self::new(values.iter().map(|v| *v as u32).collect(), I32, dims)
    }

    pub(crate) fn floats(&self) -> Vec<f32> {
        self.memory.iter().map(|bits| f32::from_bits(*bits)).collect()
    }
}

/// Repeatable numbers in (-1, 1).
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A struct of the ABI with nothing set but its size, as its macro makes it.
pub(crate) fn init<T>() -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    unsafe {
        value.as_mut_ptr().cast::<usize>().write(size_of::<T>());
        value.assume_init()
    }
}

/// Status and message of a call, which must agree with what the call says without an error to write.
pub(crate) fn outcome(call: &mut dyn FnMut(*mut *mut sae_error) -> sae_status) -> (sae_status, String) {
    let mut error = null_mut();
    let status = call(&mut error);
    assert_eq!(error.is_null(), status == SAE_OK, "an error comes with failure, and only then");
    assert_eq!(unsafe { sae_error_status(error) }, status);
    let message = unsafe { CStr::from_ptr(sae_error_message(error)) }.to_str().unwrap().to_owned();
    unsafe { sae_error_free(error) };
    (status, message)
}

/// That a call succeeds.
pub(crate) fn ok(mut call: impl FnMut(*mut *mut sae_error) -> sae_status) {
    let (status, message) = outcome(&mut call);
    assert_eq!(status, SAE_OK, "{message}");
}

/// That a call fails with this status, and a message that names the thing.
#[track_caller]
pub(crate) fn refused(
    expected: sae_status,
    named: &str,
    mut call: impl FnMut(*mut *mut sae_error) -> sae_status,
) -> String {
    let (status, message) = outcome(&mut call);
    assert_eq!(status, expected, "for {named:?}, the message was {message:?}");
    assert!(message.contains(named), "{message:?} does not say {named:?}");
    assert_eq!(call(null_mut()), expected, "without a place for the error");
    message
}

/// What a model of the tests is made of.
pub(crate) struct Plan {
    pub(crate) desc: sae_model_desc,
    pub(crate) weights: Vec<(&'static std::ffi::CStr, Box<Array>)>,
}

/// A TopK model of 16 latents over 8 dimensions.
pub(crate) fn plan() -> Plan {
    let mut desc = init::<sae_model_desc>();
    (desc.architecture, desc.d_in, desc.n_latents, desc.k) = (SAE_ARCHITECTURE_TOP_K, 8, 16, 4);
    let weights = vec![
        (c"W_enc", Array::f32(&numbers(128, 1), &[16, 8])),
        (c"W_dec", Array::f32(&numbers(128, 2), &[16, 8])),
        (c"b_enc", Array::f32(&numbers(16, 3), &[16])),
        (c"b_dec", Array::f32(&numbers(8, 4), &[8])),
    ];
    Plan { desc, weights }
}

/// A transcoder from 8 to 6 dimensions with a skip path.
pub(crate) fn transcoder_plan() -> Plan {
    let mut plan = plan();
    plan.desc.d_out = 6;
    plan.desc.flags = SAE_MODEL_KEEPS_B_DEC | SAE_MODEL_STAYS_NORMALIZED;
    plan.weights[1].1 = Array::f32(&numbers(96, 2), &[16, 6]);
    plan.weights[3].1 = Array::f32(&numbers(6, 4), &[6]);
    plan.weights.push((c"W_skip", Array::f32(&numbers(48, 5), &[6, 8])));
    plan
}

impl Plan {
    pub(crate) fn named(&self) -> Vec<sae_named_tensor> {
        self.weights.iter().map(|(name, a)| sae_named_tensor { name: name.as_ptr(), tensor: a.tensor }).collect()
    }

    pub(crate) fn model(&self) -> Model {
        let named = self.named();
        let mut model = null_mut();
        ok(|e| unsafe { sae_model_from_weights(&self.desc, named.as_ptr(), named.len(), null(), &mut model, e) });
        Model(model)
    }
}

macro_rules! owner {
    ($name:ident, $type:ident, $free:ident) => {
        pub(crate) struct $name(pub(crate) *mut $type);

        impl Drop for $name {
            fn drop(&mut self) {
                unsafe { $free(self.0) };
            }
        }
    };
}
owner!(Model, sae_model, sae_model_free);
owner!(Session, sae_session, sae_session_free);
owner!(Trainer, sae_trainer, sae_trainer_free);
owner!(Atlas, sae_atlas, sae_atlas_free);
owner!(Buffer, sae_buffer, sae_buffer_free);
owner!(Pool, sae_pool, sae_pool_free);
owner!(Report, sae_report, sae_report_free);

impl Model {
    pub(crate) fn info(&self) -> sae_info {
        let mut info = init();
        ok(|e| unsafe { sae_model_info(self.0, &mut info, e) });
        info
    }

    pub(crate) fn session(&self, options: &sae_session_options) -> Session {
        let mut session = null_mut();
        ok(|e| unsafe { sae_session_create(self.0, options, &mut session, e) });
        Session(session)
    }
}

/// A pointer that points nowhere and is not aligned.
pub(crate) fn misaligned<T>() -> *mut T {
    std::ptr::without_provenance_mut::<c_void>(align_of::<T>() + 1).cast()
}

impl Report {
    pub(crate) fn info(&self) -> sae_report_info {
        let mut info = init();
        ok(|e| unsafe { sae_report_get(self.0, &mut info, e) });
        info
    }
}
