package sae

// #include "shim.h"
import "C"

import "unsafe"

// A Tri is yes, no, or unknown, which is its zero value.
type Tri int32

const (
	Unknown Tri = C.SAE_UNKNOWN
	Yes     Tri = C.SAE_YES
	No      Tri = C.SAE_NO
)

func (t Tri) String() string {
	switch t {
	case Yes:
		return "yes"
	case No:
		return "no"
	}
	return "unknown"
}

// A Convention is what a model's inputs must look like. Zero values are not known. A wrong convention fails silently:
// sizes fit, and the features are nonsense.
type Convention struct {
	// The language model whose activations these are.
	ModelName string
	// Where in it the input is read, as TransformerLens, Hugging Face or ggml name it.
	HookPoint string
	// Where the output belongs, if elsewhere (transcoders).
	HookPointOut string
	// Token positions left out of training, such as the attention sink at 0.
	ExcludedPositions []uint32
	// Tokens per context in training.
	ContextSize int
	// Whether texts began with the beginning-of-sequence token.
	PrependBOS Tri
	// Whether the language model's writing weights were centred, so that inputs have mean 0. An engine's do not.
	CenteredWritingWeights Tri
	// Whether the language model's LayerNorm weights were folded into the next layer.
	FoldedLayerNorm Tri
	// What healthy inputs measure, for [Diagnose] to compare with: fraction of variance unexplained.
	ReferenceFVU float64
	// Active latents per token.
	ReferenceL0 float64
	// Median norm of the inputs.
	ReferenceNorm float64
	// The distance of the norms' quartiles, relative to the median.
	ReferenceNormSpread float64
}

func (v *Convention) c(s *scope) *C.sae_convention {
	if v == nil {
		return nil
	}
	c := &allocate[C.sae_convention](s, 1)[0]
	*c = C.sae_convention{
		struct_size:              C.sizeof_sae_convention,
		model_name:               s.text("model name", v.ModelName),
		hook_point:               s.text("hook point", v.HookPoint),
		hook_point_out:           s.text("hook point of the output", v.HookPointOut),
		excluded_positions:       copied(s, v.ExcludedPositions, func(p uint32) C.uint32_t { return C.uint32_t(p) }),
		n_excluded_positions:     C.size_t(len(v.ExcludedPositions)),
		context_size:             C.uint32_t(v.ContextSize),
		prepend_bos:              C.int32_t(v.PrependBOS),
		centered_writing_weights: C.int32_t(v.CenteredWritingWeights),
		folded_layer_norm:        C.int32_t(v.FoldedLayerNorm),
		reference_fvu:            C.double(v.ReferenceFVU),
		reference_l0:             C.double(v.ReferenceL0),
		reference_norm:           C.double(v.ReferenceNorm),
		reference_norm_spread:    C.double(v.ReferenceNormSpread),
	}
	return c
}

// A copy of numbers in memory of the library's.
func numbers[T, U any](from *T, n C.size_t, convert func(T) U) []U {
	if n == 0 {
		return nil
	}
	to := make([]U, n)
	for i, value := range unsafe.Slice(from, n) {
		to[i] = convert(value)
	}
	return to
}
