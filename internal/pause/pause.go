// Package pause holds the program that is pid 1 of a pod whose containers share a pid namespace: it waits, reaps and ends
// with status 0 on SIGTERM or SIGINT. See pause.c.
package pause

import "bytes"

// Binary returns the program for the architecture of this build: a static ELF file that needs nothing of the root file
// system it is started in. It takes no arguments. The caller may change the slice.
func Binary() []byte { return bytes.Clone(binary) }
