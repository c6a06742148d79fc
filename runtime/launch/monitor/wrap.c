//go:build cgo

// What stands in for pthread_create where Go's runtime makes its threads: monitor.go has the linker's side of it.

#define _GNU_SOURCE
#include <pthread.h>
#include <sys/prctl.h>

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);

// slack of the monitor thread in nanoseconds, and given, that of all others. A thread begins with its maker's.
static const int slack = 10 * 1000 * 1000;
static int given;

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
	int own = prctl(PR_GET_TIMERSLACK), want = given;
	if (!given) { // the first is the monitor, and nobody else makes threads yet
		given = own;
		want = slack;
	}
	if (want != own)
		prctl(PR_SET_TIMERSLACK, want);
	int result = __real_pthread_create(thread, attr, start, arg);
	if (want != own)
		prctl(PR_SET_TIMERSLACK, own);
	return result;
}
