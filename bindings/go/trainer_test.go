package sae

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func training(seed uint32) Tensor {
	w := wholes(seed)
	p := newPlain()
	x := w.some(256 * d)
	indices, values, _ := p.encode(x)
	return Matrix(p.decode(indices, values), 256, d)
}

func weightsOf(t *testing.T, trainer *Trainer) []float32 {
	t.Helper()
	model := must(trainer.Export(ExportEMA))
	rows := make([]float32, latents*d)
	ok(t, model.Read(WDec, 0, latents, Matrix(rows, latents, d)))
	return rows
}

func TestTrainingResumesToTheSameBits(t *testing.T) {
	options := TrainOptions{D: d, Latents: latents, K: k, LearningRate: 1e-2, MaxBatchTokens: 256, Seed: 5,
		Convention: &Convention{HookPoint: "l_out-3"}}
	trainer := must(NewTrainer(options))
	if progress := must(trainer.Progress()); progress.Started || progress.D != d || progress.K != k {
		t.Fatalf("%+v", progress)
	}
	_, err := trainer.Step(Batch{X: training(1)})
	refused(t, err, ErrBadState, "")
	ok(t, trainer.InitFrom(training(1), Tensor{}))
	var first, last TrainStats
	for step := range 60 {
		last = must(trainer.Step(Batch{X: training(uint32(step))}))
		if step == 0 {
			first = last
		}
	}
	if last.FVU > first.FVU/2 || last.Step != 60 || !last.Applied || last.Tokens != 256 || last.LearningRate == 0 {
		t.Fatalf("first %+v, last %+v", first, last)
	}

	dir := t.TempDir() + "/run"
	ok(t, trainer.Save(dir))
	other := must(Resume(dir, &TrainOptions{Pool: must(NewPool(2))}))
	if progress := must(other.Progress()); progress.Step != 60 || progress.RowsGiven != 60*256 || !progress.Started {
		t.Fatalf("%+v", progress)
	}
	mask := make([]int32, 256)
	for i := range 200 {
		mask[i] = 1
	}
	for _, one := range []*Trainer{trainer, other} {
		if stats := must(one.Step(Batch{X: training(99), RowMask: Vector(mask), Accumulate: true})); stats.Applied || stats.TokensMasked != 56 {
			t.Fatalf("%+v", stats)
		}
		must(one.Step(Batch{X: training(100)}))
	}
	equal(t, "weights", weightsOf(t, other), weightsOf(t, trainer))
	if info := must(must(trainer.Export(ExportWeights)).Info()); info.Hook.Name != "l_out-3" {
		t.Fatal(info)
	}

	warm := must(NewTrainer(options))
	ok(t, warm.WarmStart(must(trainer.Export(ExportWeights)), training(1), Tensor{}))
	if stats := must(warm.Step(Batch{X: training(3)})); stats.FVU > first.FVU/2 {
		t.Fatalf("a warm start begins at %v", stats.FVU)
	}
	refused(t, warm.WarmStart(nil, training(1), Tensor{}), ErrInvalidArgument, "nil")
	_, err = Resume(dir, &TrainOptions{D: d + 1})
	refused(t, err, ErrInvalidArgument, "13")
	_, err = Resume(t.TempDir(), nil)
	refused(t, err, ErrIO, "")
	_, err = NewTrainer(TrainOptions{D: d})
	refused(t, err, ErrInvalidArgument, "n_latents")
	matryoshka := TrainOptions{D: d, Latents: latents, K: k, Recipe: RecipeMatryoshka, Prefixes: []int{10, latents}}
	matryoshka.PrefixWeights = []float32{1}
	_, err = NewTrainer(matryoshka)
	refused(t, err, ErrInvalidArgument, "prefix weights")
	matryoshka.PrefixWeights = []float32{1, 2}
	nested := must(NewTrainer(matryoshka))
	ok(t, nested.InitFrom(training(1), Tensor{}))
	must(nested.Step(Batch{X: training(2)}))
	if info := must(must(nested.Export(ExportWeights)).Info()); len(info.Prefixes) != 2 || info.Prefixes[0] != 10 {
		t.Fatal(info.Prefixes)
	}
}

func TestTranscoders(t *testing.T) {
	trainer := must(NewTrainer(TrainOptions{D: d, Latents: latents, K: k, Flags: Transcoder | Skip}))
	ok(t, trainer.InitFrom(training(1), training(2)))
	if stats := must(trainer.Step(Batch{X: training(1), Target: training(2)})); stats.Tokens != 256 {
		t.Fatalf("%+v", stats)
	}
	model := must(trainer.Export(ExportWeights))
	if info := must(model.Info()); info.Flags&HasSkip == 0 {
		t.Fatal(info)
	}
	warm := must(NewTrainer(TrainOptions{D: d, Latents: latents, K: k, Flags: Transcoder | Skip}))
	ok(t, warm.WarmStart(model, training(1), training(2)))
}

func TestABufferGivesEveryRowOnce(t *testing.T) {
	const rows, batch = 4000, 50
	options := BufferOptions{D: 2, MemoryBytes: 64 << 10, Flags: BufferDocuments, Seed: 3}
	size := must(BufferMemory(options))
	buffer := must(NewBuffer(options))
	if state := must(buffer.State()); state.Capacity != size.Capacity || size.MemoryBytes == 0 {
		t.Fatalf("%+v %+v", state, size)
	}
	var next atomic.Int64
	pushing := together(4, func(int) {
		for {
			first := next.Add(10) - 10
			if first >= rows {
				return
			}
			x, documents := make([]float32, 20), make([]int64, 10)
			for i := range documents {
				documents[i], x[2*i] = first+int64(i), float32(first+int64(i))
			}
			if taken := must(buffer.Push(Rows{X: Matrix(x, 10, 2), Documents: documents}, Forever)); taken != 10 {
				panic(taken)
			}
		}
	})
	seen := make([]atomic.Int32, rows)
	taking := together(2, func(int) {
		x, documents := make([]float32, 2*batch), make([]int64, batch)
		for {
			taken, more, err := buffer.Take(Matrix(x, batch, 2), documents, Forever)
			if err != nil {
				panic(err)
			}
			if !more {
				return
			}
			for i := range taken {
				seen[documents[i]].Add(1)
				if x[2*i] != float32(documents[i]) {
					panic("a row with another's document")
				}
			}
		}
	})
	pushing()
	ok(t, buffer.Finish())
	taking()
	for row := range seen {
		if times := seen[row].Load(); times != 1 {
			t.Fatalf("row %d was given %d times", row, times)
		}
	}
	state := must(buffer.State())
	if state.Pushed != rows || state.Taken != rows || !state.Finished {
		t.Fatalf("%+v", state)
	}
	_, err := buffer.Push(Rows{X: Matrix([]float32{1, 2}, 1, 2), Documents: []int64{0}}, 0)
	refused(t, err, ErrBadState, "")
	_, err = buffer.Push(Rows{X: Matrix([]float32{1, 2}, 1, 2), Documents: []int64{}}, 0)
	refused(t, err, ErrInvalidTensor, "documents")
}

func TestABufferIsClosedUnderThoseWhoWait(t *testing.T) {
	buffer := must(NewBuffer(BufferOptions{D: 2, MemoryBytes: 64 << 10}))
	waiting := together(1, func(int) {
		_, more, err := buffer.Take(Matrix(make([]float32, 20), 10, 2), nil, Forever)
		if more || err != nil && !errors.Is(err, ErrBadState) {
			panic("something was given")
		}
	})
	time.Sleep(10 * time.Millisecond)
	ok(t, buffer.Close())
	waiting()
}

func TestABufferGoesOnWhereItWasSaved(t *testing.T) {
	w := wholes(2)
	x := w.some(2000)
	buffer := must(NewBuffer(BufferOptions{D: 2, MemoryBytes: 64 << 10, Seed: 9}))
	must(buffer.Push(Rows{X: Matrix(x, 1000, 2)}, 0))
	path := t.TempDir() + "/buffer"
	ok(t, buffer.Save(path))
	again := must(RestoreBuffer(path, nil))
	for _, one := range []*Buffer{buffer, again} {
		ok(t, one.Finish())
	}
	a, b := make([]float32, 200), make([]float32, 200)
	for range 10 {
		if taken, _, err := buffer.Take(Matrix(a, 100, 2), nil, time.Second); taken != 100 || err != nil {
			t.Fatal(taken, err)
		}
		if taken, _, err := again.Take(Matrix(b, 100, 2), nil, time.Second); taken != 100 || err != nil {
			t.Fatal(taken, err)
		}
		equal(t, "batch", b, a)
	}
}
