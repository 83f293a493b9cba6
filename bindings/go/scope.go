package sae

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"runtime"
	"strings"
	"unsafe"
)

// A scope is what one cold call needs until it ends: memory of C's for texts, arrays and structs that hold pointers,
// the slices they point to, pinned, and other objects, shared. The first thing that could not be had is its error.
type scope struct {
	pinner runtime.Pinner
	memory []unsafe.Pointer
	shared []*handle
	err    error
}

func (s *scope) end() {
	for _, h := range s.shared {
		h.unshare()
	}
	s.pinner.Unpin()
	for _, memory := range s.memory {
		C.free(memory)
	}
}

func (s *scope) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

func (s *scope) share(h *handle) unsafe.Pointer {
	object, err := h.share()
	if err != nil {
		s.fail(err)
		return nil
	}
	s.shared = append(s.shared, h)
	return object
}

// Zeroed memory for n things; it must not be kept in Go memory that outlives the scope.
func allocate[T any](s *scope, n int) []T {
	if n == 0 {
		return nil
	}
	memory := C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof(*new(T))))
	if memory == nil {
		panic("sae: out of memory")
	}
	s.memory = append(s.memory, memory)
	return unsafe.Slice((*T)(memory), n)
}

// "" is NULL.
func (s *scope) text(name, text string) *C.char {
	if text == "" {
		return nil
	}
	return s.path(name, text)
}

// Like text, but "" is an empty text, for the library to complain of.
func (s *scope) path(name, text string) *C.char {
	if strings.ContainsRune(text, 0) {
		s.fail(failed(ErrInvalidArgument, "%s: %q has a NUL in it, which C takes for the end", name, text))
		return nil
	}
	c := C.CString(text)
	s.memory = append(s.memory, unsafe.Pointer(c))
	return c
}

// A copy of some numbers; nil of none.
func copied[T, U any](s *scope, from []T, convert func(T) U) *U {
	to := allocate[U](s, len(from))
	for i, value := range from {
		to[i] = convert(value)
	}
	return unsafe.SliceData(to)
}

// An absent tensor is NULL.
func (s *scope) tensor(name string, tensor Tensor) *C.sae_tensor {
	if tensor.Absent() {
		return nil
	}
	view := allocate[C.sae_tensor](s, 1)
	view[0] = s.view(name, tensor)
	return &view[0]
}

func (s *scope) view(name string, tensor Tensor) C.sae_tensor {
	s.fail(tensor.fault(name))
	sizes := allocate[C.int64_t](s, 6)
	copy(sizes[:3], tensor.c.shape[:])
	copy(sizes[3:], tensor.c.strides[:])
	if tensor.c.data != nil {
		s.pinner.Pin(tensor.c.data)
	}
	return C.sae_tensor{
		data: tensor.c.data, device: tensor.c.device, ndim: tensor.c.ndim, dtype: tensor.c.dtype,
		shape: &sizes[0], strides: &sizes[3],
	}
}
