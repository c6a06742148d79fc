//go:build cgo

// Package stages makes what libcontainer starts the keeper's child at once, and not only when the launcher has gone.
//
// libcontainer starts a helper, stage 0, which clones stage 1, which clones init. Both clones have CLONE_PARENT, so that
// init is a child of stage 0's parent: runc, as a rule, here the launcher. A child changes its parent only when that ends,
// so a launcher had to end for the keeper to become the parent of what it made. Without CLONE_PARENT in the first of
// them, stages 1 and 2 are stage 0's children, which ends before libcontainer goes on: then they are those of the nearest
// subreaper, the keeper. libcontainer finds by its pid what it started and does not mind that it is not its child, but
// for Wait, which says so at once.
//
// It is so for the inits of containers only. They wait for their start, whereas what was started by an exec may have ended
// before the launcher looks at it, and would then have been reaped by the keeper.
//
// This package needs importing only. The linker sends the callers of clone in this binary to wrap.c; nsexec.c is the only
// one (glibc's own go by another name).
package stages

// #cgo LDFLAGS: -Wl,--wrap=clone
import "C"
