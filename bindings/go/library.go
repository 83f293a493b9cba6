package sae

// #cgo pkg-config: libsae
// #include "shim.h"
import "C"

// Version is the release of the library that is loaded, such as "0.1.0".
func Version() string { return C.GoString(C.sae_version()) }

// ABIVersion is the ABI of the library that is loaded, and the one that this program was compiled for. They must be the
// same; while they are 0, there are no promises yet.
func ABIVersion() (loaded, compiled int) { return int(C.sae_abi_version()), C.SAE_ABI_VERSION }

// A Format is a layout of SAEs on disk.
type Format struct {
	Name string
	// Whether models are saved in it too.
	Writes bool
}

// Formats lists what [Load] recognises.
func Formats() []Format {
	var formats []Format
	for i := C.size_t(0); ; i++ {
		var writes C.int32_t
		name := C.sae_format_name(i, &writes)
		if name == nil {
			return formats
		}
		formats = append(formats, Format{C.GoString(name), writes != 0})
	}
}

// Kernels lists the instruction sets that this machine runs, slowest first, by the names that [SessionOptions] takes.
func Kernels() []string {
	var names []string
	for i := C.size_t(0); ; i++ {
		name := C.sae_kernels_name(i)
		if name == nil {
			return names
		}
		names = append(names, C.GoString(name))
	}
}
