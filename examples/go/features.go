// Features encodes, rebuilds and steers real activations, and compares every bit with what is expected:
//
//	cd examples/go && go run . ../data
//
// examples/data/README.md says what the files hold.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"libsae.org/sae"
)

const tokens = 32

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: features examples/data")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(folder string) error {
	model, err := sae.Load(filepath.Join(folder, "sae.safetensors"), nil)
	if err != nil {
		return err
	}
	defer model.Close()
	info, err := model.Info()
	if err != nil {
		return err
	}
	session, err := model.NewSession(nil)
	if err != nil {
		return err
	}
	defer session.Close()
	fmt.Printf("%d latents of %s at %s (%s in llama.cpp)\n", info.Latents, info.ModelName, info.Hook.Name, info.Hook.GGML)

	x, err := numbers[float32](filepath.Join(folder, "activations.f32"), tokens*info.DIn)
	if err != nil {
		return err
	}
	edits, err := numbers[sae.Edit](filepath.Join(folder, "expected", "edits.raw"), 4)
	if err != nil {
		return err
	}
	features, xHat := sae.NewFeatures(tokens, info.K, info.RowStateWidth), make([]float32, tokens*info.DOut)
	if err := errors.Join(
		session.Encode(sae.Matrix(x, tokens, info.DIn), features),
		session.Decode(features, sae.Tensor{}, sae.Matrix(xHat, tokens, info.DOut)),
		session.SetEdits(0, edits...),
		session.Steer(sae.Matrix(x, tokens, info.DIn), nil),
	); err != nil {
		return err
	}
	latents, values := features.Row(0)
	fmt.Print("token 0:")
	for i := range 4 {
		fmt.Printf("  latent %d: %.3f", latents[i], values[i])
	}
	fmt.Println()

	return errors.Join(
		same(folder, "indices.i32", features.AllIndices()),
		same(folder, "values.f32", features.AllValues()),
		same(folder, "counts.i32", features.AllCounts()),
		same(folder, "x_hat.f32", xHat),
		same(folder, "steered.f32", x),
	)
}

// The file must hold exactly as many.
func numbers[T any](path string, count int) ([]T, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	read := make([]T, count)
	if len(data) != binary.Size(read) {
		return nil, fmt.Errorf("%s: expected %d bytes, found %d", path, binary.Size(read), len(data))
	}
	_, err = binary.Decode(data, binary.LittleEndian, read)
	return read, err
}

// Whether what was computed is what the file says, to the bit.
func same(folder, name string, computed any) error {
	expected, err := os.ReadFile(filepath.Join(folder, "expected", name))
	if err != nil {
		return err
	}
	var bits bytes.Buffer
	if err := binary.Write(&bits, binary.LittleEndian, computed); err != nil {
		return err
	}
	if !bytes.Equal(bits.Bytes(), expected) {
		return fmt.Errorf("%s: DIFFERENT", name)
	}
	fmt.Printf("%s: the same bits\n", name)
	return nil
}
