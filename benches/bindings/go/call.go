// What a call costs in Go, as ../call.c measures it in C.
package main

import (
	"fmt"
	"time"

	"libsae.org/sae"
)

const (
	d, latents, k = 8, 16, 2
	rounds, calls = 40, 2000
)

func main() {
	w, x, xHat := make([]float32, latents*d), make([]float32, d), make([]float32, d)
	for i := range w {
		w[i] = float32(i*5%11 - 5)
	}
	for i := range x {
		x[i] = float32(i + 1)
	}
	model, err := sae.NewModel(sae.ModelDesc{DIn: d, Latents: latents, K: k, Architecture: sae.TopK},
		sae.Weights{"W_enc": sae.Matrix(w, latents, d), "W_dec": sae.Matrix(w, latents, d)}, nil)
	check(err)
	session, err := model.NewSession(nil)
	check(err)
	features := sae.NewFeatures(1, k, 0)

	measure("encode", func() error { return session.Encode(sae.Matrix(x, 1, d), features) })
	measure("decode", func() error { return session.Decode(features, sae.Tensor{}, sae.Matrix(xHat, 1, d)) })
	measure("steer", func() error { return session.Steer(sae.Matrix(x, 1, d), nil) })
}

// The fastest of some rounds.
func measure(name string, call func() error) {
	best := time.Duration(1 << 62)
	for range rounds {
		start := time.Now()
		for range calls {
			check(call())
		}
		best = min(best, time.Since(start))
	}
	fmt.Printf("%s %.1f\n", name, float64(best.Nanoseconds())/calls)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
