package sae

import (
	"runtime"
	"sync"
	"unsafe"
)

// A handle owns an object of the library's, and keeps it from being freed while a call uses it.
type handle struct {
	lock    sync.RWMutex
	object  unsafe.Pointer
	name    string
	free    func(unsafe.Pointer)
	cleanup runtime.Cleanup
}

// Whether the garbage collector may free an object. On a GPU that would come at a moment that nobody chose.
type place bool

const (
	onHost place = true
	onGPU  place = false
)

// Takes over a new object.
func (h *handle) own(name string, object unsafe.Pointer, free func(unsafe.Pointer), where place) {
	h.name, h.object, h.free = name, object, free
	if where == onHost {
		h.cleanup = runtime.AddCleanup(h, free, object)
	}
}

// Begins a call that any number of goroutines may make at once; unshare ends it.
func (h *handle) share() (unsafe.Pointer, error) {
	h.lock.RLock()
	if h.object == nil {
		h.lock.RUnlock()
		return nil, h.gone()
	}
	object := h.object
	collect()
	return object, nil
}

func (h *handle) unshare() {
	h.lock.RUnlock()
	runtime.KeepAlive(h)
}

// Begins a call that must be the only one; release ends it.
func (h *handle) acquire() (unsafe.Pointer, error) {
	if !h.lock.TryLock() {
		return nil, failed(ErrBadState, "%s: another goroutine's call is under way, use one %s per goroutine", h.name, h.name)
	}
	if h.object == nil {
		h.lock.Unlock()
		return nil, h.gone()
	}
	object := h.object
	collect()
	return object, nil
}

func (h *handle) release() {
	h.lock.Unlock()
	runtime.KeepAlive(h)
}

func (h *handle) gone() error {
	if h.free == nil {
		return failed(ErrBadState, "a zero value of this type is not usable, make one by its functions")
	}
	return failed(ErrBadState, "%s: it is closed", h.name)
}

// Close frees the object once calls that are under way have ended. Calls after it fail with [ErrBadState]; closing
// again does nothing. It never fails.
func (h *handle) Close() error {
	h.lock.Lock()
	defer h.lock.Unlock()
	if h.object != nil {
		h.cleanup.Stop()
		h.free(h.object)
		h.object = nil
	}
	return nil
}
