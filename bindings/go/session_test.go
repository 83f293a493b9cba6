package sae

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

const tokens = 17

func activations() []float32 { w := wholes(7); return w.some(tokens * d) }

func TestEncodeAndDecodeAreTheSameAsInPlainGo(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	defer model.Close()
	session := must(model.NewSession(nil))
	defer session.Close()
	indices, values, counts := p.encode(x)
	dense := p.dense(x)

	features := NewFeatures(tokens, k, 0)
	ok(t, session.Encode(Matrix(x, tokens, d), features))
	equal(t, "indices", features.AllIndices(), indices)
	equal(t, "values", features.AllValues(), values)
	equal(t, "counts", features.AllCounts(), counts)
	latents3, activations3 := features.Row(3)
	equal(t, "row", latents3, indices[3*k:3*k+int(counts[3])])
	equal(t, "row", activations3, values[3*k:3*k+int(counts[3])])

	xHat := make([]float32, tokens*d)
	ok(t, session.Decode(features, Tensor{}, Matrix(xHat, tokens, d)))
	equal(t, "decoded", xHat, p.decode(indices, values))

	z := make([]float32, tokens*latents)
	ok(t, session.EncodeDense(Matrix(x, tokens, d), PreActivations, Matrix(z, tokens, latents)))
	equal(t, "pre-activations", z, dense)

	ids, some := []int32{indices[0], 3, latents}, make([]float32, tokens*3)
	ok(t, session.EncodeSelected(Matrix(x, tokens, d), Vector(ids), Matrix(some, tokens, 3)))
	for token := range tokens {
		for j, id := range ids {
			want := float32(0)
			if slot := slices.Index(indices[token*k:(token+1)*k], id); slot >= 0 {
				want = values[token*k+slot]
			}
			if some[token*3+j] != want {
				t.Fatalf("latent %d on token %d: %v, %v is right", id, token, some[token*3+j], want)
			}
		}
	}

	again, y := NewFeatures(tokens, k, 0), make([]float32, tokens*d)
	ok(t, session.Reconstruct(Matrix(x, tokens, d), again, Matrix(y, tokens, d)))
	equal(t, "reconstruction", y, xHat)
	equal(t, "its features", again.AllIndices(), indices)
	ok(t, session.Reconstruct(Matrix(x, tokens, d), nil, Matrix(x, tokens, d)))
	equal(t, "reconstruction in place", x, xHat)
}

func TestInputsOfEveryTypeAndShapeOfMemory(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	defer model.Close()
	session := must(model.NewSession(nil))
	defer session.Close()
	indices, _, _ := p.encode(x)
	features := NewFeatures(tokens, k, 0)

	half, other := make([]BF16, len(x)), make([]F16, len(x))
	for i := range x {
		half[i] = ToBF16(x[i])
		if half[i].Float32() != x[i] {
			t.Fatalf("%v became %v", x[i], half[i].Float32())
		}
		other[i] = []F16{0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500}[int(max(x[i], -x[i]))]
		if x[i] < 0 {
			other[i] |= 0x8000
		}
	}
	gaps := make([]float32, tokens*(d+3)-3)
	for i := range tokens {
		copy(gaps[i*(d+3):], x[i*d:(i+1)*d])
	}
	for name, input := range map[string]Tensor{
		"bf16": Matrix(half, tokens, d), "f16": Matrix(other, tokens, d), "gaps": Strided(gaps, tokens, d, d+3),
	} {
		ok(t, session.Encode(input, features))
		equal(t, name, features.AllIndices(), indices)
	}

	ones, less := make([]float32, len(x)), make([]float32, len(x))
	for i := range ones {
		ones[i], less[i] = 1, x[i]-1
	}
	ok(t, session.Encode(Matrix(less, tokens, d), features, Run{Addend: Matrix(ones, tokens, d)}))
	equal(t, "with an addend", features.AllIndices(), indices)
	ok(t, session.Encode(Matrix(x, tokens, d), features, Run{Flags: OrderIndex}))
	for token := range tokens {
		if row, _ := features.Row(token); !slices.IsSorted(row) {
			t.Fatalf("not by index: %v", row)
		}
	}
	ok(t, session.Encode(Matrix(x[:0], 0, d), features.Head(0)))
	ok(t, session.Encode(Matrix(x, 3, d), features.Head(3)))
	equal(t, "the first", features.AllIndices()[:3*k], indices[:3*k])

	x[d] = float32(math.NaN())
	ok(t, session.Encode(Matrix(x, tokens, d), features))
	if counts := features.AllCounts(); counts[1] != -1 || counts[0] < 0 {
		t.Fatalf("counts %v, the second token is not finite", counts)
	}
	if row, _ := features.Row(1); len(row) != 0 {
		t.Fatalf("features of a token that is not finite: %v", row)
	}
}

func TestSteering(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	defer model.Close()
	session := must(model.NewSession(&SessionOptions{Slots: 2, EditsPerSlot: 3}))
	defer session.Close()
	indices, values, _ := p.encode(x)

	// Adding, everywhere and in place.
	ok(t, session.SetEdits(0, Add(7, 2)))
	y := slices.Clone(x)
	ok(t, session.Steer(Matrix(y, tokens, d), nil))
	for i := range y {
		if want := x[i] + 2*p.wDec[7*d+i%d]; y[i] != want {
			t.Fatalf("number %d is %v, %v is right", i, y[i], want)
		}
	}

	// Ablating by row, elsewhere, from features that are known.
	top := indices[0]
	ok(t, session.SetEdits(1, Ablate(top)))
	features, slots, out := NewFeatures(tokens, k, 0), make([]int32, tokens), make([]float32, len(x))
	ok(t, session.Encode(Matrix(x, tokens, d), features))
	for i := range slots {
		slots[i] = -1
	}
	slots[0] = 1
	before := slices.Clone(x)
	steering := Steering{RowSlot: Vector(slots), Known: features, Out: Matrix(out, tokens, d)}
	ok(t, session.Steer(Matrix(x, tokens, d), &steering))
	equal(t, "input", x, before)
	equal(t, "rows that are left alone", out[d:], x[d:])
	for j := range d {
		if want := x[j] - values[0]*p.wDec[int(top)*d+j]; out[j] != want {
			t.Fatalf("ablated: %v, %v is right", out[j], want)
		}
	}
	steering.Known = nil
	unknown := make([]float32, len(x))
	steering.Out = Matrix(unknown, tokens, d)
	ok(t, session.Steer(Matrix(x, tokens, d), &steering))
	equal(t, "from features that were not known", unknown, out)

	ok(t, session.SetEdits(0))
	y = slices.Clone(x)
	ok(t, session.Steer(Matrix(y, tokens, d), nil))
	equal(t, "without edits", y, x)
	for _, edits := range [][]Edit{{Set(0, 1), Scale(0, 2)}, {Add(latents, 1)}, {{Op: 9}}} {
		refused(t, session.SetEdits(0, edits...), ErrInvalidArgument, "")
	}
}

func TestShardsMergeToTheWhole(t *testing.T) {
	p, x := newPlain(), activations()
	path := t.TempDir() + "/sae.safetensors"
	whole := p.model()
	ok(t, whole.Save(path, nil))
	session := must(whole.NewSession(nil))
	want, got := NewFeatures(tokens, k, 0), NewFeatures(tokens, k, 0)
	ok(t, session.Encode(Matrix(x, tokens, d), want))
	var parts []*Features
	for first := 0; first < latents; first += 10 {
		shard := must(Load(path, &LoadOptions{FirstLatent: first, Latents: 10}))
		one := must(shard.NewSession(nil))
		part := NewFeatures(tokens, k, 0)
		ok(t, one.Encode(Matrix(x, tokens, d), part))
		parts = append(parts, part)
	}
	ok(t, session.Merge(parts, got))
	equal(t, "indices", got.AllIndices(), want.AllIndices())
	equal(t, "values", got.AllValues(), want.AllValues())
	refused(t, session.Merge([]*Features{nil}, got), ErrInvalidArgument, "nil")
	refused(t, session.Merge(slices.Repeat(parts[:1], 65), got), ErrInvalidArgument, "64")
}

func refused(t *testing.T, err error, status Status, says string) {
	t.Helper()
	if !errors.Is(err, status) || !strings.Contains(err.Error(), says) {
		t.Fatalf("expected %v with %q in it, found %v", status, says, err)
	}
}

func TestBadInputIsRefusedByName(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	session := must(model.NewSession(&SessionOptions{MaxTokens: tokens}))
	features := NewFeatures(tokens, k, 0)
	for i := range features.AllValues() {
		features.AllValues()[i] = 99
	}
	whole := Matrix(x, tokens, d)
	badCounts := &Features{features.Values, features.Indices, Vector(x), Tensor{}}
	badIndices := &Features{features.Values, Matrix(features.AllIndices(), tokens, k+1), features.Counts, Tensor{}}
	for says, err := range map[string]error{
		"takes 204 numbers, but the slice has 203": session.Encode(Matrix(x[:len(x)-1], tokens, d), features),
		"x: expected":                          session.Encode(Matrix(x, tokens, d-1), features),
		"x":                                    session.Encode(Tensor{}, features),
		"out":                                  session.Encode(whole, nil),
		"addend":                               session.Encode(whole, features, Run{Addend: Vector(x)}),
		"features.counts: expected shape [17]": session.Encode(whole, badCounts),
		"i32":                                  session.Encode(Matrix(make([]int32, len(x)), tokens, d), features),
		"x_hat":                                session.Decode(features, Tensor{}, Vector(x)),
		"stride":                               session.Encode(Strided(x, tokens, d, -1), features),
		"x: a tensor":                          session.Encode(Matrix(x, math.MaxInt, math.MaxInt), features),
		"features.indices: a tensor":           session.Decode(badIndices, Tensor{}, whole),
	} {
		refused(t, err, ErrInvalidTensor, says)
	}
	refused(t, session.Encode(Matrix(make([]float32, 2*len(x)), 2*tokens, d), features), ErrInvalidArgument, "")
	refused(t, session.Encode(Matrix(x, tokens, d), features, Run{}, Run{}), ErrInvalidArgument, "takes one")
	refused(t, session.Decode(features, Tensor{}, Matrix(x, tokens, d), Run{Addend: Matrix(x, tokens, d)}), ErrInvalidArgument, "takes none")
	refused(t, session.SetEdits(math.MaxInt), ErrInvalidArgument, "slot")
	for _, value := range features.AllValues() {
		if value != 99 {
			t.Fatal("a call that was refused wrote its output")
		}
	}

	_, err := Load("/nowhere/at all", nil)
	refused(t, err, ErrIO, "/nowhere/at all")
	_, err = Load("a\x00b", nil)
	refused(t, err, ErrInvalidArgument, "NUL")
	_, err = NewModel(desc, Weights{"W_enc": Matrix(p.wEnc, latents, d)}, nil)
	refused(t, err, ErrInvalidArgument, "W_dec")
	_, err = model.NewSession(&SessionOptions{Kernels: "abacus"})
	refused(t, err, ErrUnsupported, "abacus")
	if ErrIO.Error() != "SAE_ERROR_IO" {
		t.Fatal(ErrIO.Error())
	}

	ok(t, session.Close())
	ok(t, session.Close())
	refused(t, session.Encode(Matrix(x, tokens, d), features), ErrBadState, "session: it is closed")
	ok(t, model.Close())
	_, err = model.Info()
	refused(t, err, ErrBadState, "model: it is closed")
	_, err = (&Model{}).Info()
	refused(t, err, ErrBadState, "zero value")
	ok(t, (&Session{}).Close())
}

func TestOneSessionIsForOneGoroutine(t *testing.T) {
	p, x := newPlain(), activations()
	session := must(p.model().NewSession(nil))
	together(8, func(int) {
		features := NewFeatures(tokens, k, 0)
		for range 200 {
			if err := session.Encode(Matrix(x, tokens, d), features); err != nil && !errors.Is(err, ErrBadState) {
				panic(err)
			}
		}
	})()
	ok(t, session.Encode(Matrix(x, tokens, d), NewFeatures(tokens, k, 0)))
}

func TestManyGoroutinesShareAModel(t *testing.T) {
	p, x := newPlain(), activations()
	indices, values, _ := p.encode(x)
	model := p.model()
	pool := must(NewPool(2))
	wait := together(32, func(i int) {
		options := &SessionOptions{}
		if i%4 == 0 {
			options.Pool = pool
		}
		session := must(model.NewSession(options))
		defer session.Close()
		features, y := NewFeatures(tokens, k, 0), make([]float32, len(x))
		if err := session.SetEdits(0, Add(int32(i), 1)); err != nil {
			panic(err)
		}
		for range 50 {
			copy(y, x)
			if err := errors.Join(session.Encode(Matrix(x, tokens, d), features), session.Steer(Matrix(y, tokens, d), nil)); err != nil {
				panic(err)
			}
			if !slices.Equal(features.AllIndices(), indices) || !slices.Equal(features.AllValues(), values) || y[0] != x[0]+p.wDec[i*d] {
				panic("other numbers than alone")
			}
		}
	})
	// The model and the pool may be closed meanwhile.
	for range 4 {
		must(model.Info())
	}
	wait()
	ok(t, pool.Close())
	ok(t, model.Close())
}

func TestHotCallsAllocateNothing(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	session := must(model.NewSession(nil))
	features, merged := NewFeatures(tokens, k, 0), NewFeatures(tokens, k, 0)
	xHat, z, ids := make([]float32, len(x)), make([]float32, tokens*latents), []int32{1, 2}
	trainer := must(NewTrainer(TrainOptions{D: d, Latents: latents, K: k}))
	ok(t, trainer.InitFrom(Matrix(x, tokens, d), Tensor{}))
	parts := []*Features{features}
	for name, call := range map[string]func() error{
		"encode":          func() error { return session.Encode(Matrix(x, tokens, d), features) },
		"encode and more": func() error { return session.Encode(Matrix(x, tokens, d), features, Run{Addend: Matrix(x, tokens, d)}) },
		"encode selected": func() error { return session.EncodeSelected(Matrix(x, tokens, d), Vector(ids), Matrix(z, tokens, 2)) },
		"encode dense": func() error {
			return session.EncodeDense(Matrix(x, tokens, d), Activations, Matrix(z, tokens, latents))
		},
		"decode":      func() error { return session.Decode(features, Tensor{}, Matrix(xHat, tokens, d)) },
		"reconstruct": func() error { return session.Reconstruct(Matrix(x, tokens, d), features, Matrix(xHat, tokens, d)) },
		"merge":       func() error { return session.Merge(parts, merged) },
		"set edits":   func() error { return session.SetEdits(0, Add(1, 1), Ablate(2)) },
		"steer":       func() error { return session.Steer(Matrix(xHat, tokens, d), &Steering{Known: features}) },
		"step":        func() error { _, err := trainer.Step(Batch{X: Matrix(x, tokens, d)}); return err },
	} {
		ok(t, call())
		if allocations := testing.AllocsPerRun(20, func() {
			if err := call(); err != nil {
				panic(err)
			}
		}); allocations != 0 {
			t.Errorf("%s allocates %v times", name, allocations)
		}
	}
}
