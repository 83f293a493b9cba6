package sae

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// What the library logged, all of it.
var logged struct {
	sync.Mutex
	lines []string
}

func TestMain(m *testing.M) {
	err := SetLog(LogInfo, func(level LogLevel, message string) {
		logged.Lock()
		defer logged.Unlock()
		logged.lines = append(logged.lines, level.String()+": "+message)
	})
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, %d are right", what, len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%s: number %d is %v, %v is right", what, i, got[i], want[i])
		}
	}
}

// Whole numbers from -5 to 5: all sums of their products are exact in f32, in whatever order.
type wholes uint32

func (w *wholes) next() float32 {
	*w = *w*1664525 + 1013904223
	return float32(int(*w>>16)%11 - 5)
}

func (w *wholes) some(n int) []float32 {
	numbers := make([]float32, n)
	for i := range numbers {
		numbers[i] = w.next()
	}
	return numbers
}

const (
	d       = 12
	latents = 40
	k       = 5
)

// A TopK SAE in plain Go.
type plain struct{ wEnc, wDec, bEnc, bDec []float32 }

func newPlain() plain {
	w := wholes(1)
	return plain{w.some(latents * d), w.some(latents * d), w.some(latents), w.some(d)}
}

func (p plain) weights() Weights {
	return Weights{"W_enc": Matrix(p.wEnc, latents, d), "W_dec": Matrix(p.wDec, latents, d), "b_enc": Vector(p.bEnc), "b_dec": Vector(p.bDec)}
}

var desc = ModelDesc{DIn: d, Latents: latents, K: k, Architecture: TopK}

func (p plain) model() *Model { return must(NewModel(desc, p.weights(), nil)) }

func (p plain) dense(x []float32) []float32 {
	z := make([]float32, 0, len(x)/d*latents)
	for ; len(x) > 0; x = x[d:] {
		for i := range latents {
			sum := p.bEnc[i]
			for j := range d {
				sum += (x[j] - p.bDec[j]) * p.wEnc[i*d+j]
			}
			z = append(z, sum)
		}
	}
	return z
}

func (p plain) encode(x []float32) (indices []int32, values []float32, counts []int32) {
	z := p.dense(x)
	for ; len(z) > 0; z = z[latents:] {
		taken, count := make([]bool, latents), int32(0)
		for range k {
			best := -1
			for i := range latents {
				if !taken[i] && z[i] > 0 && (best < 0 || z[i] > z[best]) {
					best = i
				}
			}
			if best < 0 {
				indices, values = append(indices, -1), append(values, 0)
				continue
			}
			taken[best] = true
			indices, values = append(indices, int32(best)), append(values, z[best])
			count++
		}
		counts = append(counts, count)
	}
	return
}

func (p plain) decode(indices []int32, values []float32) []float32 {
	var x []float32
	for ; len(indices) > 0; indices, values = indices[k:], values[k:] {
		row := append([]float32(nil), p.bDec...)
		for slot, i := range indices[:k] {
			for j := range row {
				if i >= 0 {
					row[j] += values[slot] * p.wDec[int(i)*d+j]
				}
			}
		}
		x = append(x, row...)
	}
	return x
}

// Runs as many goroutines, and returns what waits for them.
func together(n int, run func(i int)) (wait func()) {
	var group sync.WaitGroup
	group.Add(n)
	for i := range n {
		go func() {
			defer group.Done()
			run(i)
		}()
	}
	return group.Wait
}

// Resident memory of this process in bytes, after collecting.
func resident() int {
	for range 3 {
		runtime.GC()
		time.Sleep(20 * time.Millisecond) // for cleanups to run
	}
	fields := bytes.Fields(must(os.ReadFile("/proc/self/statm")))
	return must(strconv.Atoi(string(fields[1]))) * os.Getpagesize()
}
