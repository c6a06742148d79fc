//go:build cgo && seccomp

// What stands in for two functions of libseccomp wherever this binary calls them: wrap.go has the linker's side of it.

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "wrap.h"

struct scmp_arg_cmp;
int __real_seccomp_rule_add_array(void *ctx, uint32_t action, int syscall, unsigned int count, const struct scmp_arg_cmp *args);
int __real_seccomp_export_bpf(const void *ctx, int fd);

// given is the compiled filter of this process, or NULL.
static const char *given;
static size_t given_length;

// captured is where a filter goes that is compiled but is not to be loaded, or -1.
static int captured = -1;

void berth_filter_give(const void *program, size_t length)
{
	given = program;
	given_length = length;
}

void berth_filter_capture(int fd)
{
	captured = fd;
}

// Adding a rule is what takes time: libseccomp copies the whole filter before each, so that it could take the rule back.
int __wrap_seccomp_rule_add_array(void *ctx, uint32_t action, int syscall, unsigned int count, const struct scmp_arg_cmp *args)
{
	if (given)
		return 0;
	return __real_seccomp_rule_add_array(ctx, action, syscall, count, args);
}

int __wrap_seccomp_export_bpf(const void *ctx, int fd)
{
	if (captured >= 0) {
		int err = __real_seccomp_export_bpf(ctx, captured);
		return err ? err : -EALREADY;
	}
	if (!given)
		return __real_seccomp_export_bpf(ctx, fd);
	for (size_t done = 0; done < given_length;) {
		ssize_t n = write(fd, given + done, given_length - done);
		if (n > 0)
			done += (size_t)n;
		else if (n == 0 || errno != EINTR)
			return n == 0 ? -EIO : -errno;
	}
	return 0;
}
