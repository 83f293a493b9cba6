//go:build sae_collect

package sae

import (
	"runtime"
	"time"
)

const collects = true

// Collects garbage between the moment a call has an object's address and the moment it uses it, and lets cleanups run:
// what is not kept alive is then gone.
func collect() {
	runtime.GC()
	runtime.GC()
	time.Sleep(50 * time.Microsecond)
}
