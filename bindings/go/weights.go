package sae

// #include "shim.h"
import "C"

import (
	"runtime"
	"runtime/cgo"
	"unsafe"
)

// A ModelDesc is what a model made of weights in memory shall be.
type ModelDesc struct {
	// Width of the input; of a crosscoder, all its layers together.
	DIn int
	// Width of the output; 0: DIn.
	DOut int
	// Layers of the language model that are read and written at once; 0: one.
	LayersIn, LayersOut int
	// Latents given, the index of the first of them, and the latents of the larger model that they are a shard of; 0:
	// of none.
	Latents, FirstLatent, ShardOf int
	// Latents kept per token, for TopK, AbsTopK and GroupMax (groups) alone.
	K int
	// How many of the first latents make a smaller model, for each size that a Matryoshka SAE was trained at.
	Prefixes []int
	// What the inputs must look like; nil: not known.
	Convention    *Convention
	Architecture  Architecture
	Normalization Normalization
	// KeepsBDec, StaysNormalized, Rescales, Selects, Centers.
	Flags ModelFlags
}

func (d *ModelDesc) c(s *scope) C.sae_model_desc {
	return C.sae_model_desc{
		struct_size:   C.sizeof_sae_model_desc,
		d_in:          C.int64_t(d.DIn),
		d_out:         C.int64_t(d.DOut),
		layers_in:     C.int64_t(d.LayersIn),
		layers_out:    C.int64_t(d.LayersOut),
		n_latents:     C.int64_t(d.Latents),
		first_latent:  C.int64_t(d.FirstLatent),
		shard_of:      C.int64_t(d.ShardOf),
		k:             C.int64_t(d.K),
		prefixes:      copied(s, d.Prefixes, func(n int) C.int64_t { return C.int64_t(n) }),
		n_prefixes:    C.size_t(len(d.Prefixes)),
		convention:    d.Convention.c(s),
		architecture:  C.int32_t(d.Architecture),
		normalization: C.int32_t(d.Normalization),
		flags:         C.uint32_t(d.Flags),
	}
}

// Weights are tensors by name, in f32, f16 or bf16: "W_enc" [latents, d_in], "W_dec" [latents, d_out], "b_enc"
// [latents], "b_dec" [d_out], "threshold" [latents] for JumpReLU, "r_mag" and "b_gate" [latents] for a gated SAE,
// "W_glu" [latents, d_in] and "b_glu" [latents] for a GLU encoder, "W_skip" [d_out, d_in] for a skip path. "b_enc",
// "b_dec" and "b_glu" are 0 if they are not given.
type Weights map[string]Tensor

// NewModel makes a model of weights in memory. They are copied, or with [LoadBorrow] used where they are: then the
// slices of matrices are pinned, and must stay as they are, until the last user of the model is closed or collected.
// options may be nil.
func NewModel(desc ModelDesc, weights Weights, options *LoadOptions) (*Model, error) {
	var s scope
	defer s.end()
	what, how := desc.c(&s), options.c(&s)
	named := allocate[C.sae_named_tensor](&s, len(weights))
	i := 0
	for name, tensor := range weights {
		named[i].name, named[i].tensor = s.path("name of a weight", name), s.view(name, tensor)
		i++
	}
	if s.err != nil {
		return nil, s.err
	}
	make := func(out **C.sae_model, err **C.sae_error) C.sae_status {
		return C.sae_model_from_weights(&what, unsafe.SliceData(named), C.size_t(len(named)), how, out, err)
	}
	if options == nil || options.Flags&LoadBorrow == 0 {
		return made(make)
	}

	lent := &runtime.Pinner{}
	for _, tensor := range weights {
		if tensor.c.data != nil {
			lent.Pin(tensor.c.data)
		}
	}
	ticket := cgo.NewHandle(lent)
	C.go_set_release(how, C.uintptr_t(ticket))
	var created bool
	model, err := made(func(out **C.sae_model, err **C.sae_error) C.sae_status {
		status := make(out, err)
		created = status == C.SAE_OK
		return status
	})
	if !created {
		giveBack(ticket)
	}
	return model, err
}

// Lets go of what was lent to the library.
func giveBack(ticket cgo.Handle) {
	ticket.Value().(*runtime.Pinner).Unpin()
	ticket.Delete()
}

//export saeGoRelease
func saeGoRelease(context C.uintptr_t) { giveBack(cgo.Handle(context)) }
