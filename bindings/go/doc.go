// Package sae runs and trains sparse autoencoders (SAEs) on a language model's activations, by the C library libsae.
//
// A [Model] holds weights and may be used by any number of goroutines. A [Session] is one stream of work over a model:
// one goroutine at a time encodes, decodes and steers with it. A [Trainer] trains a new SAE, a [Buffer] shuffles
// activations for it, and [Diagnose] tells whether a model and activations fit.
//
// # Memory
//
// A [Tensor] is a view of a slice, never a copy, and the library works on that memory directly. It looks at a tensor while
// a call runs and not longer; the one exception is a model made with [LoadBorrow], which pins its matrices until its last
// user is gone. The hot calls (Encode, EncodeSelected, EncodeDense, Decode, Reconstruct, Steer, Merge, SetEdits and
// [Trainer.Step]) allocate nothing in Go.
//
// Every object has a Close, which waits for calls that are under way and may come more than once. An object in host memory
// that is no longer reachable is freed by the garbage collector; one on a GPU is not, since freeing there at a moment that
// nobody chose would disturb the work of others: it must be closed.
//
// # Failure
//
// Errors are of type *[Error], with the library's status and message: what was wrong, what was expected and what was found.
// Statuses are errors themselves, so errors.Is(err, sae.ErrInvalidTensor) asks for a kind. A call that fails leaves its
// outputs as they were.
//
// # Linking
//
// The package finds the library by pkg-config, as "libsae". Where the library lies outside the system's folders, programs
// need its folder in LD_LIBRARY_PATH, or in CGO_LDFLAGS as -Wl,-rpath,FOLDER while they are built.
//
// With the build tag sae_collect the garbage collector runs inside every call, so that whatever is not kept alive long
// enough is gone when it is needed: slow, and for tests alone.
package sae
