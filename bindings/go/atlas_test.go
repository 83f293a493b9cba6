package sae

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnAtlasCountsWhatItSees(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	defer model.Close()
	session := must(model.NewSession(nil))
	defer session.Close()
	features := NewFeatures(tokens, k, 0)
	ok(t, session.Encode(Matrix(x, tokens, d), features))

	options := AtlasOptions{Latents: latents, TopBefore: 2, TopAfter: 1}
	if most := must(options.Memory()); most == 0 {
		t.Fatal("an atlas takes memory")
	}
	watched := must(NewAtlas(options))
	defer watched.Close()
	ids, documents := make([]int32, tokens), make([]int64, tokens)
	for i := range ids {
		ids[i], documents[i] = int32(100+i), 7
	}
	ok(t, watched.Observe(features, ids, documents, nil))
	ok(t, watched.Finish())
	if info := must(watched.Info()); info.Tokens != tokens || info.Latents != latents || info.Stretches != 1 {
		t.Fatalf("it has seen %+v", info)
	}

	latent := int(features.AllIndices()[0])
	var count, at int
	var most float32
	for i, index := range features.AllIndices() {
		if int(index) == latent {
			count++
			if value := features.AllValues()[i]; value > most {
				most, at = value, i/k
			}
		}
	}
	found := must(watched.Latent(latent))
	if found.Count != uint64(count) || found.Max != most || found.Windows[WindowsTop] == 0 || len(found.Bins) == 0 {
		t.Fatalf("latent %d is active %d times, at most %v; found %+v", latent, count, most, found)
	}
	window := must(watched.Window(latent, WindowsTop, 0))
	if window.Document != 7 || window.Position != int64(at) || window.Value != most || window.Tokens[window.At] != int32(100+at) {
		t.Fatalf("the peak is on token %d; found %+v", at, window)
	}

	path := filepath.Join(t.TempDir(), "atlas")
	ok(t, watched.Save(path))
	loaded := must(LoadAtlas(path, 0))
	defer loaded.Close()
	other := must(NewAtlas(options))
	defer other.Close()
	for i := range documents {
		documents[i] = 8
	}
	ok(t, other.Observe(features, ids, documents, nil))
	ok(t, loaded.Merge(other))
	if twice := must(loaded.Latent(latent)); twice.Count != 2*found.Count {
		t.Fatalf("merged, it is active %d times, not %d", twice.Count, 2*found.Count)
	}
}

func TestAtlasesSayWhatIsWrong(t *testing.T) {
	if _, err := NewAtlas(AtlasOptions{}); !errors.Is(err, ErrInvalidArgument) {
		t.Fatalf("no latents: %v", err)
	}
	if _, err := LoadAtlas(filepath.Join(t.TempDir(), "none"), 0); !errors.Is(err, ErrIO) {
		t.Fatalf("no file: %v", err)
	}
	watched := must(NewAtlas(AtlasOptions{Latents: latents}))
	features := NewFeatures(2, k, 0)
	if err := watched.Observe(features, []int32{1, 2}, []int64{1}, nil); err == nil || !strings.Contains(err.Error(), "documents") {
		t.Fatalf("one document for two tokens: %v", err)
	}
	if err := watched.Observe(features, []int32{1}, nil, nil); err == nil || !strings.Contains(err.Error(), "tokens") {
		t.Fatalf("one token for two rows: %v", err)
	}
	if _, err := watched.Latent(latents); err == nil {
		t.Fatal("there is no such latent")
	}
	ok(t, watched.Close())
	if err := watched.Finish(); !errors.Is(err, ErrBadState) {
		t.Fatalf("closed: %v", err)
	}
}
