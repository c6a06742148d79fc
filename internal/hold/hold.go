// Package hold holds the program that has a descriptor open for as long as a process lives. See hold.c.
package hold

// Binary returns the program for the architecture of this build, a static ELF file. The caller must not change it.
func Binary() []byte { return binary }

// The descriptors with which the program is started.
const (
	FileProcess = 0 // a pidfd
	FileHeld    = 1
)
