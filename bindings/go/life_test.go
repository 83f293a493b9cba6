package sae

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Objects are made, used and closed, or left to the collector, without growth.
func TestManyLivesDoNotGrow(t *testing.T) {
	cycles := 10_000
	if collects {
		cycles = 50
	}
	p, x := newPlain(), activations()
	features := NewFeatures(tokens, k, 0)
	live := func(closes bool) {
		model := p.model()
		session := must(model.NewSession(nil))
		ok(t, session.Encode(Matrix(x, tokens, d), features))
		if _, err := Load("/nowhere", nil); err == nil {
			t.Fatal("there is nothing to load")
		}
		if closes {
			session.Close()
			model.Close()
		}
	}
	// A model and its session take some 100 kB. What nobody closed waits for the collector, and leaves gaps when it goes.
	for closes, limit := range map[bool]int{true: 16 << 20, false: 64 << 20} {
		cycle := func(n int) (after int) {
			for i := range n {
				live(closes)
				if !closes && i%50 == 0 {
					runtime.GC()
				}
			}
			return resident()
		}
		before := cycle(cycles / 10)
		if grown := cycle(cycles) - before; grown > limit {
			t.Errorf("closed: %v: %d cycles left %d bytes", closes, cycles, grown)
		}
	}
}

// What a call uses is reachable from nothing but the call.
func TestTemporariesLiveAsLongAsTheirCall(t *testing.T) {
	p, x := newPlain(), activations()
	indices, _, _ := p.encode(x)
	for range 20 {
		if info := must(p.model().Info()); info.DIn != d {
			t.Fatal(info)
		}
		features := NewFeatures(tokens, k, 0)
		ok(t, must(p.model().NewSession(&SessionOptions{Pool: must(NewPool(2))})).Encode(Matrix(slices.Clone(x), tokens, d), features))
		equal(t, "indices", features.AllIndices(), indices)
		rows := make([]float32, 3*d)
		ok(t, must(p.model().WithK(2)).Read(WDec, 4, 3, Matrix(rows, 3, d)))
		equal(t, "W_dec", rows, p.wDec[4*d:7*d])
	}
}

func TestBorrowedWeightsAreGivenBack(t *testing.T) {
	var gone atomic.Int32
	p, x := newPlain(), activations()
	indices, _, _ := p.encode(x)
	lend := func() *Session {
		mine := newPlain()
		for _, matrix := range []*[]float32{&mine.wEnc, &mine.wDec} {
			runtime.AddCleanup(&(*matrix)[0], func(int) { gone.Add(1) }, 0)
		}
		model := must(NewModel(desc, mine.weights(), &LoadOptions{Flags: LoadBorrow}))
		if info := must(model.Info()); info.Latents != latents {
			t.Fatal(info)
		}
		session := must(model.NewSession(nil))
		model.Close()
		return session
	}
	session := lend()
	runtime.GC()
	runtime.GC()
	time.Sleep(20 * time.Millisecond)
	if gone.Load() != 0 {
		t.Fatal("weights were collected while a session uses them")
	}
	features := NewFeatures(tokens, k, 0)
	ok(t, session.Encode(Matrix(x, tokens, d), features))
	equal(t, "indices", features.AllIndices(), indices)
	ok(t, session.Close())
	for range 100 {
		runtime.GC()
		if time.Sleep(time.Millisecond); gone.Load() == 2 {
			break
		}
	}
	if gone.Load() != 2 {
		t.Fatalf("%d of 2 matrices were given back", gone.Load())
	}

	_, err := NewModel(desc, Weights{"W_enc": Matrix(p.wEnc, latents, d)}, &LoadOptions{Flags: LoadBorrow})
	refused(t, err, ErrInvalidArgument, "W_dec")
}

func TestPoolsGiveTheSameNumbers(t *testing.T) {
	rows := 300
	w := wholes(3)
	p, x := newPlain(), w.some(rows*d)
	model := p.model()
	var ran atomic.Int32
	pools := map[string]*Pool{"alone": nil, "three": must(NewPool(3)), "host": must(NewHostPool(3, func(n int, task func(int)) {
		order := rand.Perm(n)
		together(n, func(i int) {
			ran.Add(1)
			task(order[i])
		})()
	}))}
	indices, values, _ := p.encode(x)
	for name, pool := range pools {
		session := must(model.NewSession(&SessionOptions{Pool: pool}))
		features := NewFeatures(rows, k, 0)
		ok(t, session.Encode(Matrix(x, rows, d), features))
		equal(t, name, features.AllIndices(), indices)
		equal(t, name, features.AllValues(), values)
	}
	if ran.Load() == 0 {
		t.Error("the host's function never ran")
	}
	if threads := pools["three"].Threads(); threads != 3 {
		t.Errorf("%d threads, 3 were asked for", threads)
	}
	_, err := NewPool(-1)
	refused(t, err, ErrInvalidArgument, "threads")
	_, err = NewHostPool(2, nil)
	refused(t, err, ErrInvalidArgument, "nil")
}

func TestTheLogIsHeard(t *testing.T) {
	path := t.TempDir() + "/heard.safetensors"
	model := newPlain().model()
	ok(t, model.Save(path, nil))
	must(Load(path, nil)).Close()
	logged.Lock()
	defer logged.Unlock()
	if !slices.ContainsFunc(logged.lines, func(line string) bool { return strings.Contains(line, "heard.safetensors") }) {
		t.Errorf("nothing of the file in the log:\n%s", strings.Join(logged.lines, "\n"))
	}
	refused(t, SetLog(LogInfo, func(LogLevel, string) {}), ErrBadState, "")
}

// Every function of the header is used somewhere in the package.
func TestTheWholeHeaderIsBound(t *testing.T) {
	var source strings.Builder
	for _, pattern := range []string{"*.go", "*.c", "shim.h"} {
		for _, path := range must(filepath.Glob(pattern)) {
			if !strings.HasSuffix(path, "_test.go") {
				source.Write(must(os.ReadFile(path)))
			}
		}
	}
	used := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bsae_\w+`).FindAllString(source.String(), -1) {
		used[name] = true
	}
	header := must(os.ReadFile("../../include/sae.h"))
	declared := regexp.MustCompile(`(?m)^(?:sae_status|void|const char \*|int32_t|uint32_t) ?(sae_\w+)\(`)
	functions := declared.FindAllStringSubmatch(string(header), -1)
	if len(functions) < 60 {
		t.Fatalf("only %d functions were found in the header", len(functions))
	}
	for _, match := range functions {
		if name := match[1]; !used[name] && name != "sae_error_status" {
			t.Errorf("%s is not bound", name)
		}
	}
}
