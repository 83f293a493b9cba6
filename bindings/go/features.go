package sae

// #include "shim.h"
import "C"

// Features hold the sparse features of some tokens: for each, up to width active latents, strongest first (ties: the
// lower index first), or by index where a call is asked to [OrderIndex].
type Features struct {
	// [tokens, width], f32, f16 or bf16: activations; unused slots hold 0.
	Values Tensor
	// [tokens, width], i32: indices of the latents; unused slots hold -1.
	Indices Tensor
	// [tokens], i32: how many latents were active, even if more than width; -1 if the token was not finite.
	Counts Tensor
	// [tokens, Info.RowStateWidth], f32: what decoding needs of each token; absent if that width is 0.
	RowState Tensor
}

// NewFeatures allocates features in f32. rowStateWidth is what the model's Info says.
func NewFeatures(tokens, width, rowStateWidth int) *Features {
	f := &Features{
		Values:  Matrix(make([]float32, tokens*width), tokens, width),
		Indices: Matrix(make([]int32, tokens*width), tokens, width),
		Counts:  Vector(make([]int32, tokens)),
	}
	if rowStateWidth > 0 {
		f.RowState = Matrix(make([]float32, tokens*rowStateWidth), tokens, rowStateWidth)
	}
	for i := range f.AllIndices() {
		f.AllIndices()[i] = -1
	}
	return f
}

// Head are the first of the tokens, in the same memory.
func (f *Features) Head(tokens int) *Features {
	head := *f
	for _, t := range []*Tensor{&head.Values, &head.Indices, &head.Counts, &head.RowState} {
		if !t.Absent() {
			t.cut(tokens)
		}
	}
	return &head
}

// AllValues are the numbers of Values, if they are f32 in Go's memory without gaps; else nil.
func (f *Features) AllValues() []float32 { return elements[float32](&f.Values) }

// AllIndices are the numbers of Indices, if they are in Go's memory without gaps; else nil.
func (f *Features) AllIndices() []int32 { return elements[int32](&f.Indices) }

// AllCounts are the numbers of Counts, if they are in Go's memory; else nil.
func (f *Features) AllCounts() []int32 { return elements[int32](&f.Counts) }

// Row is a token's active latents, and how strongly each is active: as many as fit the width. Not for values in other
// types than f32, nor with gaps.
func (f *Features) Row(token int) (latents []int32, activations []float32) {
	width := int(f.Indices.c.shape[1])
	latents = f.AllIndices()[token*width : (token+1)*width]
	activations = f.AllValues()[token*width : (token+1)*width]
	for i, latent := range latents {
		if latent < 0 {
			return latents[:i], activations[:i]
		}
	}
	return latents, activations
}

func (f *Features) fault(name string) error {
	if f == nil || f.Values.need <= f.Values.have && f.Indices.need <= f.Indices.have &&
		f.Counts.need <= f.Counts.have && f.RowState.need <= f.RowState.have {
		return nil
	}
	for _, part := range []struct {
		name   string
		tensor *Tensor
	}{{"values", &f.Values}, {"indices", &f.Indices}, {"counts", &f.Counts}, {"row_state", &f.RowState}} {
		if err := part.tensor.fault(name + "." + part.name); err != nil {
			return err
		}
	}
	return nil
}

func (f *Features) c() C.go_features {
	if f == nil {
		return C.go_features{}
	}
	return C.go_features{values: f.Values.c, indices: f.Indices.c, counts: f.Counts.c, row_state: f.RowState.c}
}
