package sae

import (
	"slices"
	"strings"
	"testing"
)

func TestWhatAModelIsSurvivesItsFile(t *testing.T) {
	p := newPlain()
	described := desc
	described.Convention = &Convention{ModelName: "a model", HookPoint: "l_out-8", ExcludedPositions: []uint32{0, 5},
		ContextSize: 64, PrependBOS: Yes, FoldedLayerNorm: No}
	described.Normalization = LayerNorm
	made := must(NewModel(described, p.weights(), nil))
	path := t.TempDir() + "/sae"
	ok(t, made.Save(path, nil))
	memory := must(LoadMemory(path, &LoadOptions{DType: BFloat16}))
	model := must(Load(path, &LoadOptions{DType: BFloat16, Convention: &Convention{CenteredWritingWeights: Yes}}))
	info := must(model.Info())
	if info.Architecture != TopK || info.Normalization != LayerNorm || info.DType != BFloat16 || info.Device.Type != CPU ||
		info.DIn != d || info.DOut != d || info.Latents != latents || info.K != k || info.RowStateWidth != 2 ||
		info.Format != "native" || info.ModelName != "a model" ||
		info.Hook != (Hook{"l_out-8", "blocks.8.hook_resid_post", "model.layers.8", "l_out-8"}) || info.HookOut != (Hook{}) ||
		!slices.Equal(info.ExcludedPositions, []uint32{0, 5}) || info.ContextSize != 64 || info.PrependBOS != Yes ||
		info.FoldedLayerNorm != No || info.CenteredWritingWeights != Yes || info.Bytes != memory.Resident {
		t.Fatalf("%+v, memory %+v", info, memory)
	}

	session := must(model.NewSession(nil))
	if needs := must(model.SessionMemory(nil)); needs.Resident == 0 || needs.Workspace == 0 {
		t.Fatalf("%+v", needs)
	}
	features, x := NewFeatures(tokens, k, info.RowStateWidth), activations()
	ok(t, session.Encode(Matrix(x, tokens, d), features))
	ok(t, session.Decode(features, Tensor{}, Matrix(x, tokens, d)))
	if names := Kernels(); !slices.Contains(names, session.Kernels()) {
		t.Fatalf("%q is none of %q", session.Kernels(), names)
	}
	ok(t, session.Wait())
	ok(t, session.Status())
	features.AllIndices()[0] = latents
	ok(t, session.Decode(features, Tensor{}, Matrix(x, tokens, d)))
	refused(t, session.Status(), ErrInvalidArgument, "1")

	for _, format := range Formats() {
		if format.Name == "native" && format.Writes {
			return
		}
	}
	t.Fatal("the native format is not listed as written")
}

func TestModelsMadeOfOthers(t *testing.T) {
	p, x := newPlain(), activations()
	model := p.model()
	if info := must(must(model.WithK(3)).Info()); info.K != 3 {
		t.Fatal(info)
	}
	subset := must(must(model.WithK(2)).Subset([]int32{4, 2}))
	rows := make([]float32, 2*d)
	ok(t, subset.Read(WEnc, 0, 2, Matrix(rows, 2, d)))
	equal(t, "subset", rows, append(slices.Clone(p.wEnc[4*d:5*d]), p.wEnc[2*d:3*d]...))
	if info := must(must(model.Prefix(7)).Info()); info.Latents != 7 {
		t.Fatal(info)
	}
	threshold := must(model.WithThreshold(Matrix(x, tokens, d), nil))
	if info := must(threshold.Info()); info.Architecture != JumpReLU {
		t.Fatal(info)
	}
	thresholds := make([]float32, latents)
	ok(t, threshold.Read(Threshold, 0, latents, Vector(thresholds)))
	if thresholds[0] <= 0 || thresholds[0] != thresholds[latents-1] {
		t.Fatal(thresholds)
	}
	scaled := must(model.FoldActivationScale(2))
	ok(t, scaled.Read(WEnc, 0, 2, Matrix(rows, 2, d)))
	for i := range rows {
		if rows[i] != 2*p.wEnc[i] {
			t.Fatalf("%v is not twice %v", rows[i], p.wEnc[i])
		}
	}
	_, err := model.FoldDecoderNorms()
	refused(t, err, ErrUnsupported, "")
	jump := must(threshold.FoldDecoderNorms())
	ok(t, jump.Read(WDec, 0, 1, Matrix(rows, 1, d)))
	var norm float32
	for _, number := range rows[:d] {
		norm += number * number
	}
	if norm < 0.9999 || norm > 1.0001 {
		t.Fatalf("a decoder row's norm, squared, is %v", norm)
	}
}

func TestTheDoctor(t *testing.T) {
	p := newPlain()
	model := p.model()
	w := wholes(5)
	rows := 2000
	x := w.some(rows * d)
	indices, values, _ := p.encode(x)
	good := p.decode(indices, values)
	baseline := must(Diagnose(model, Matrix(x, rows, d), nil))
	info := must(baseline.Info())
	if info.RowsGiven != rows || info.L0 == 0 || info.Verdict == 0 {
		t.Fatalf("%+v", info)
	}
	report := must(Diagnose(model, Matrix(good, rows, d), &DoctorOptions{Baseline: baseline, Pool: must(NewPool(2)), MaxRows: 1000}))
	findings := must(report.Findings())
	if info = must(report.Info()); info.Findings != len(findings) || info.RowsMeasured > 1000 {
		t.Fatalf("%+v %+v", info, findings)
	}
	for _, finding := range findings {
		if finding.Code == 0 || finding.Title == "" || finding.Advice == "" || !strings.Contains(report.Text(), finding.Title) {
			t.Fatalf("%+v", finding)
		}
	}
	if !strings.Contains(report.JSON(), `"verdict"`) {
		t.Fatal(report.JSON())
	}
	ok(t, report.Close())
	if report.Text() != "" {
		t.Fatal("a text of a report that is closed")
	}
}
