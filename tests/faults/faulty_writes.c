/* Loaded before libc by tests/faults/faults.py: from the n-th call on that changes a file system, each one fails.
   `fault_arm(n, errno)` starts the count, `fault_count()` tells how many calls there were. `fault_tell(fd)` has the
   first of them closed `fd`, which tells whoever reads the other end of that pipe. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1, seen = 0;
static int reason = 0, tell = -1;

void fault_arm(long n, int error) { left = n; reason = error; seen = 0; }
long fault_count(void) { return seen; }
void fault_tell(int fd) { tell = fd; }

static int fails(void) {
    seen++;
    if (tell >= 0) { close(tell); tell = -1; }
    if (left < 0) return 0;
    if (left > 0) { left--; return 0; }
    errno = reason;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return fd > 2 && fails() ? -1 : real(fd, data, size);
}
ssize_t copy_file_range(int in, off64_t *at_in, int out, off64_t *at_out, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return fails() ? -1 : real(in, at_in, out, at_out, size, flags);
}
ssize_t sendfile(int out, int in, off_t *at, size_t size);
ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    REAL(sendfile);
    return fails() ? -1 : real(out, in, at, size);
}
int fsync(int fd) { REAL(fsync); return fails() ? -1 : real(fd); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fails() ? -1 : real(path, mode); }
int link(const char *from, const char *to) { REAL(link); return fails() ? -1 : real(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat);
    return fails() ? -1 : real(a, from, b, to, flags);
}
int rename(const char *from, const char *to) { REAL(rename); return fails() ? -1 : real(from, to); }
