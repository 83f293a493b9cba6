package sae

// #include "shim.h"
import "C"

import (
	"runtime/cgo"
	"unsafe"
)

// A Pool is threads that sessions and trainers may share. Results do not depend on how many there are. Sessions and
// trainers keep what they need of it, so it may be closed before them.
type Pool struct{ handle }

// NewPool makes a pool of threads, of which the calling one is the first and the others are the library's own; 0: one
// per core.
func NewPool(threads int) (*Pool, error) {
	var c *C.sae_pool
	var failure *C.sae_error
	if C.sae_pool_create(C.int32_t(threads), &c, &failure); failure != nil {
		return nil, take(failure)
	}
	return pool(c), nil
}

// A ParallelFor calls task(i) once for each i in 0..n-1, in any order and on any goroutines, possibly one after
// another, and returns when all are done. It must not panic: that ends the process.
type ParallelFor func(n int, task func(i int))

// NewHostPool uses goroutines, or whatever parallel runs things on, of which up to threads run at once. It is kept for
// as long as the process lives: make one, and share it. The library's own threads cost less to wake.
func NewHostPool(threads int, parallel ParallelFor) (*Pool, error) {
	if parallel == nil {
		return nil, failed(ErrInvalidArgument, "parallel: it is nil, a function is needed")
	}
	var c *C.sae_pool
	var failure *C.sae_error
	ticket := cgo.NewHandle(parallel)
	if C.go_pool_from_host(C.int32_t(threads), C.uintptr_t(ticket), &c, &failure); failure != nil {
		ticket.Delete()
		return nil, take(failure)
	}
	return pool(c), nil
}

func pool(c *C.sae_pool) *Pool {
	p := &Pool{}
	p.own("pool", unsafe.Pointer(c), func(c unsafe.Pointer) { C.sae_pool_free((*C.sae_pool)(c)) }, onHost)
	return p
}

//export saeGoParallelFor
func saeGoParallelFor(context C.uintptr_t, n C.size_t, task C.sae_task, arg unsafe.Pointer) {
	defer fatal("a pool's function")
	parallel := cgo.Handle(context).Value().(ParallelFor)
	parallel(int(n), func(i int) {
		defer fatal("a pool's function")
		C.go_run_task(task, arg, C.size_t(i))
	})
}

// Threads is how many run at once; 0 once the pool is closed.
func (p *Pool) Threads() int {
	c, err := p.share()
	if err != nil {
		return 0
	}
	defer p.unshare()
	return int(C.sae_pool_threads((*C.sae_pool)(c)))
}

// The pool of some options; nil is NULL.
func (s *scope) pool(p *Pool) *C.sae_pool {
	if p == nil {
		return nil
	}
	return (*C.sae_pool)(s.share(&p.handle))
}
