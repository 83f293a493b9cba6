package sae_test

import (
	"errors"
	"fmt"

	"libsae.org/sae"
)

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// Two latents over three dimensions: one for the first, one for the last.
var directions = []float32{
	1, 0, 0,
	0, 0, 1,
}

func twoLatents() *sae.Model {
	return must(sae.NewModel(
		sae.ModelDesc{DIn: 3, Latents: 2, K: 2, Architecture: sae.TopK},
		sae.Weights{"W_enc": sae.Matrix(directions, 2, 3), "W_dec": sae.Matrix(directions, 2, 3)},
		nil,
	))
}

func ExampleSession_Encode() {
	model := twoLatents()
	defer model.Close()
	session := must(model.NewSession(nil))
	defer session.Close()

	x := []float32{
		0.5, 9, 2,
		-1, 9, 3,
	}
	features := sae.NewFeatures(2, 2, 0)
	check(session.Encode(sae.Matrix(x, 2, 3), features))
	for token := range 2 {
		latents, values := features.Row(token)
		fmt.Println("token", token, "latents", latents, "values", values)
	}
	// Output:
	// token 0 latents [1 0] values [2 0.5]
	// token 1 latents [1] values [3]
}

func ExampleSession_Steer() {
	model := twoLatents()
	defer model.Close()
	session := must(model.NewSession(&sae.SessionOptions{Slots: 2}))
	defer session.Close()

	// Two requests in one batch: the first is steered by slot 1, the second left alone.
	check(session.SetEdits(1, sae.Add(0, 5), sae.Ablate(1)))
	x := []float32{
		0.5, 9, 2,
		0.5, 9, 2,
	}
	check(session.Steer(sae.Matrix(x, 2, 3), &sae.Steering{RowSlot: sae.Vector([]int32{1, -1})}))
	fmt.Println(x)
	// Output: [5.5 9 0 0.5 9 2]
}

func ExampleError() {
	_, err := sae.Load("/nowhere/sae.safetensors", nil)
	fmt.Println(errors.Is(err, sae.ErrIO), errors.Is(err, sae.ErrFormat))
	fmt.Println(err)
	// Output:
	// true false
	// /nowhere/sae.safetensors: No such file or directory (os error 2)
}

func ExampleTrainer() {
	x := []float32{
		1, 0, 0,
		0, 0, 2,
		3, 0, 0,
		0, 0, 4,
	}
	trainer := must(sae.NewTrainer(sae.TrainOptions{D: 3, Latents: 8, K: 1, LearningRate: 0.02}))
	defer trainer.Close()
	check(trainer.InitFrom(sae.Matrix(x, 4, 3), sae.Tensor{}))
	var stats sae.TrainStats
	for range 200 {
		stats = must(trainer.Step(sae.Batch{X: sae.Matrix(x, 4, 3)}))
	}
	fmt.Println("steps:", stats.Step, "explained:", stats.FVU < 0.1)
	// Output: steps: 200 explained: true
}
