package sae

// #include "shim.h"
import "C"

import (
	"math"
	"math/bits"
	"unsafe"
)

// F16 holds the bits of an IEEE binary16 number.
type F16 uint16

// BF16 holds the bits of a bfloat16 number: the upper half of a float32.
type BF16 uint16

// ToBF16 rounds to the nearest, ties to even.
func ToBF16(x float32) BF16 {
	b := math.Float32bits(x)
	if x != x {
		return BF16(b>>16 | 0x40)
	}
	return BF16((b + 0x7fff + b>>16&1) >> 16)
}

// Float32 is the same number.
func (x BF16) Float32() float32 { return math.Float32frombits(uint32(x) << 16) }

// A DType is the type of a tensor's elements. The zero value stands for "as it is" where a type is chosen.
type DType struct{ c C.sae_dtype }

var (
	Float32  = DType{C.sae_dtype{C.SAE_DTYPE_FLOAT, 32, 1}}
	Float16  = DType{C.sae_dtype{C.SAE_DTYPE_FLOAT, 16, 1}}
	BFloat16 = DType{C.sae_dtype{C.SAE_DTYPE_BFLOAT, 16, 1}}
	Int32    = DType{C.sae_dtype{C.SAE_DTYPE_INT, 32, 1}}
)

func (t DType) String() string {
	switch t {
	case DType{}:
		return "as it is"
	case Float32:
		return "f32"
	case Float16:
		return "f16"
	case BFloat16:
		return "bf16"
	case Int32:
		return "i32"
	}
	return "unknown dtype"
}

// A DeviceType is a kind of memory, in DLPack's codes.
type DeviceType int32

const (
	CPU         DeviceType = C.SAE_DEVICE_CPU
	CUDA        DeviceType = C.SAE_DEVICE_CUDA
	CUDAHost    DeviceType = C.SAE_DEVICE_CUDA_HOST
	CUDAManaged DeviceType = C.SAE_DEVICE_CUDA_MANAGED
)

// A Device is a place for memory and work. The zero value is the CPU.
type Device struct {
	Type DeviceType
	ID   int
}

func (d Device) c() C.sae_device {
	return C.sae_device{device_type: C.int32_t(d.Type), device_id: C.int32_t(d.ID)}
}

func (d Device) place() place { return d.Type == 0 || d.Type == CPU }

// An Element is what tensors in Go's memory hold.
type Element interface{ float32 | int32 | F16 | BF16 }

// A Tensor is a view of a slice, or of memory elsewhere: a vector, a matrix whose rows may have gaps between them, or a
// stack of matrices. The zero value is no tensor. Making one does not allocate. A slice that is too short is found out
// by the call that is given the tensor, which then fails with [ErrInvalidTensor]. By cgo's rules, a slice may not be
// part of a struct that also holds pointers.
type Tensor struct {
	c    C.go_tensor
	have int64 // elements of the slice; unknownLength elsewhere
	need int64 // elements of the tensor, gaps included
}

const unknownLength = math.MaxInt64

// Vector is a view of all of data.
func Vector[T Element](data []T) Tensor {
	return view(data, 1, 1, 1, len(data), 0, 0)
}

// Matrix is a view of data as rows of columns numbers, without gaps: of activations, each row a token.
func Matrix[T Element](data []T, rows, columns int) Tensor {
	return Strided(data, rows, columns, columns)
}

// Strided is a view of data as rows of columns numbers that begin stride numbers apart.
func Strided[T Element](data []T, rows, columns, stride int) Tensor {
	return view(data, 2, 1, rows, columns, 0, stride)
}

// Stack is a view of data as n matrices without gaps: of a crosscoder's activations, each a token with a row per layer.
func Stack[T Element](data []T, n, rows, columns int) Tensor {
	return view(data, 3, n, rows, columns, saturating(rows, columns), columns)
}

// Foreign is a matrix in memory that Go does not manage, such as a GPU's: rows that begin stride elements apart.
func Foreign(data unsafe.Pointer, dtype DType, device Device, rows, columns, stride int) Tensor {
	t := shaped(2, 1, rows, columns, 0, stride)
	t.c.data, t.c.dtype, t.c.device = data, dtype.c, device.c()
	t.have = unknownLength
	return t
}

// ForeignVector is a vector in memory that Go does not manage.
func ForeignVector(data unsafe.Pointer, dtype DType, device Device, length int) Tensor {
	t := shaped(1, 1, 1, length, 0, 0)
	t.c.data, t.c.dtype, t.c.device = data, dtype.c, device.c()
	t.have = unknownLength
	return t
}

func view[T Element](data []T, ndim, n, rows, columns, outer, stride int) Tensor {
	t := shaped(ndim, n, rows, columns, outer, stride)
	t.c.data = unsafe.Pointer(unsafe.SliceData(data))
	t.c.device.device_type = C.SAE_DEVICE_CPU
	t.c.dtype = dtypeOf[T]()
	t.have = int64(len(data))
	return t
}

func dtypeOf[T Element]() C.sae_dtype {
	switch any(*new(T)).(type) {
	case float32:
		return Float32.c
	case F16:
		return Float16.c
	case BF16:
		return BFloat16.c
	default:
		return Int32.c
	}
}

func shaped(ndim, n, rows, columns, outer, stride int) Tensor {
	t := Tensor{}
	sizes, steps := [3]int{n, rows, columns}, [3]int{outer, stride, 1}
	for i := range ndim {
		t.c.shape[i], t.c.strides[i] = C.int64_t(sizes[3-ndim+i]), C.int64_t(steps[3-ndim+i])
	}
	t.c.ndim = C.int32_t(ndim)
	t.measure()
	return t
}

// Sizes and steps that are negative are left to the library.
func (t *Tensor) measure() {
	last := 0
	for i := range t.c.ndim {
		size, step := int(t.c.shape[i]), int(t.c.strides[i])
		if size <= 0 {
			t.need = 0
			return
		}
		if step > 0 {
			last = saturatingSum(last, saturating(size-1, step))
		}
	}
	t.need = int64(saturatingSum(last, 1))
}

func (t *Tensor) cut(rows int) {
	t.c.shape[0] = C.int64_t(rows)
	t.measure()
}

// The product of numbers that are not negative, or the largest number.
func saturating(a, b int) int {
	if high, low := bits.Mul64(uint64(a), uint64(b)); high == 0 && low < math.MaxInt64 {
		return int(low)
	}
	return math.MaxInt64 - 1
}

func saturatingSum(a, b int) int {
	if a > math.MaxInt64-1-b {
		return math.MaxInt64 - 1
	}
	return a + b
}

// Absent tells whether this is no tensor.
func (t Tensor) Absent() bool { return t.c.ndim == 0 }

// Rows is how many rows it has; a vector's are its numbers, a stack's its matrices.
func (t Tensor) Rows() int { return int(t.c.shape[0]) }

// What the library cannot see: whether the slice is as long as the tensor. Absent tensors are left to it.
func (t *Tensor) fault(name string) error {
	if t.need <= t.have {
		return nil
	}
	shape := make([]int64, t.c.ndim)
	for i := range shape {
		shape[i] = int64(t.c.shape[i])
	}
	return failed(ErrInvalidTensor,
		"%s: a tensor of shape %v takes %d numbers, but the slice has %d; give a longer slice or other sizes", name, shape, t.need, t.have)
}

// Whether elements lie one after another.
func (t *Tensor) dense() bool {
	step := C.int64_t(1)
	for i := int(t.c.ndim) - 1; i >= 0; i-- {
		if t.c.shape[i] > 1 && t.c.strides[i] != step {
			return false
		}
		step *= t.c.shape[i]
	}
	return true
}

// The elements of a tensor without gaps in Go's memory; nil of others.
func elements[T Element](t *Tensor) []T {
	if t.c.dtype != dtypeOf[T]() || t.have == unknownLength || t.need > t.have || !t.dense() {
		return nil
	}
	return unsafe.Slice((*T)(t.c.data), t.need)
}
