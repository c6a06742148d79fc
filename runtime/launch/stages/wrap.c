//go:build cgo

// What stands in for clone in libcontainer's nsexec.c: stages.go has the linker's side of it.

#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int __real_clone(int (*fn)(void *), void *stack, int flags, void *arg);

// The first clone of a process is stage 0's. Stage 1 has a copy of cloned, and clones stage 2 as a child of stage 0.
static bool cloned;

int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg)
{
	const char *type = getenv("_LIBCONTAINER_INITTYPE");
	if (!cloned && type && strcmp(type, "standard") == 0)
		flags &= ~CLONE_PARENT;
	cloned = true;
	return __real_clone(fn, stack, flags, arg);
}
