package sae

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The README's program is built as a stranger would build it, and runs as it is printed.
func TestTheReadmesProgramRuns(t *testing.T) {
	_, rest, _ := strings.Cut(string(must(os.ReadFile("README.md"))), "```go\n")
	program, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("the README has no program")
	}
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644))
	here := must(os.Getwd())
	var said []byte
	for _, command := range [][]string{
		{"go", "mod", "init", "example"},
		{"go", "mod", "edit", "-require=libsae.org/sae@v0.0.0", "-replace=libsae.org/sae=" + here},
		{"go", "run", "."},
	} {
		run := exec.Command(command[0], command[1:]...)
		run.Dir = dir
		var err error
		if said, err = run.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, said)
		}
	}
	if !strings.Contains(string(said), "token 0: latent") {
		t.Fatalf("it says %s", said)
	}
}
