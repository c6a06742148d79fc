#include <stddef.h>

// From here on each filter that is exported is this program, whatever its rules. The memory must stay.
void berth_filter_give(const void *program, size_t length);

// From here on a filter that is exported goes to fd, and the export fails with EALREADY, so that it is not loaded; with -1
// no longer.
void berth_filter_capture(int fd);
