/* Fails, or kills at, the n-th system call on a folder: preloaded by tests/faults/injection.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char prefix[4096];
static volatile int armed;
static volatile long count, pieces, nth;
static long large;
static int kind; /* of the fault: 0 the call fails, 1 it kills, 2 a piece of memory is not had */

void m4_arm(const char *folder, long n, int what, long bytes) {
  snprintf(prefix, sizeof prefix, "%s", folder);
  count = 0; pieces = 0; nth = n; kind = what; large = bytes; armed = 1;
}
long m4_count(void) { armed = 0; return count; }
long m4_pieces(void) { return pieces; }

static int below(const char *path) {
  return path && !strncmp(path, prefix, strlen(prefix));
}
static int below_fd(int fd) {
  char name[64], path[4096];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(name, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return below(path);
}
static int at(int fd, const char *path) {
  if (path && path[0] == '/') return below(path);
  return fd == AT_FDCWD ? 0 : below_fd(fd);
}
/* Whether this piece of memory is the one that is not had. */
static int short_of(size_t size) {
  if (!armed || (long)size < large) return 0;
  if (__sync_add_and_fetch(&pieces, 1) != nth || kind != 2) return 0;
  errno = ENOMEM;
  return 1;
}
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
void *malloc(size_t n) { return short_of(n) ? 0 : __libc_malloc(n); }
void *calloc(size_t k, size_t n) { return short_of(k * n) ? 0 : __libc_calloc(k, n); }
void *realloc(void *p, size_t n) { return short_of(n) ? 0 : __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { return short_of(n) ? 0 : __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  return (*p = memalign(a, n)) || !n ? 0 : ENOMEM;
}
/* Whether this call is the one that fails. */
static int hit(int watched, int error) {
  if (!armed || !watched) return 0;
  if (__sync_add_and_fetch(&count, 1) != nth || kind == 2) return 0;
  if (kind == 1) { kill(getpid(), SIGKILL); pause(); }
  errno = error;
  return 1;
}
#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define MODE va_list list; va_start(list, flags); \
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; va_end(list)
#define OPEN(name) int name(const char *path, int flags, ...) { MODE; \
  REAL(int, name, const char *, int, ...); \
  if (armed && hit(below(path), flags & O_CREAT ? ENOSPC : EIO)) return -1; \
  return real(path, flags, mode); }
#define OPENAT(name) int name(int fd, const char *path, int flags, ...) { MODE; \
  REAL(int, name, int, const char *, int, ...); \
  if (armed && hit(at(fd, path), flags & O_CREAT ? ENOSPC : EIO)) return -1; \
  return real(fd, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
#define ON_FD(type, name, error, decl, ...) type name decl { \
  REAL(type, name, TYPES); \
  if (armed && hit(below_fd(fd), error)) return -1; return real(__VA_ARGS__); }
#define TYPES int, void *, size_t
ON_FD(ssize_t, read, EIO, (int fd, void *data, size_t n), fd, data, n)
#undef TYPES
#define TYPES int, void *, size_t, off_t
ON_FD(ssize_t, pread, EIO, (int fd, void *data, size_t n, off_t at), fd, data, n, at)
ON_FD(ssize_t, pread64, EIO, (int fd, void *data, size_t n, off_t at), fd, data, n, at)
#undef TYPES
#define TYPES int, const void *, size_t
ON_FD(ssize_t, write, ENOSPC, (int fd, const void *data, size_t n), fd, data, n)
#undef TYPES
#define TYPES int, const void *, size_t, off_t
ON_FD(ssize_t, pwrite64, ENOSPC, (int fd, const void *data, size_t n, off_t at), fd, data, n, at)
#undef TYPES
#define TYPES int
ON_FD(int, fsync, EIO, (int fd), fd)
ON_FD(int, fdatasync, EIO, (int fd), fd)
#undef TYPES
#define TYPES int, int
ON_FD(int, flock, ENOLCK, (int fd, int how), fd, how)
#undef TYPES
int rename(const char *a, const char *b) {
  REAL(int, rename, const char *, const char *);
  return armed && hit(below(b), EIO) ? -1 : real(a, b);
}
int renameat(int f, const char *a, int g, const char *b) {
  REAL(int, renameat, int, const char *, int, const char *);
  return armed && hit(at(g, b), EIO) ? -1 : real(f, a, g, b);
}
int link(const char *a, const char *b) {
  REAL(int, link, const char *, const char *);
  return armed && hit(below(b), EPERM) ? -1 : real(a, b);
}
int unlink(const char *a) {
  REAL(int, unlink, const char *);
  return armed && hit(below(a), EIO) ? -1 : real(a);
}
int unlinkat(int f, const char *a, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  return armed && hit(at(f, a), EIO) ? -1 : real(f, a, flags);
}
int rmdir(const char *a) {
  REAL(int, rmdir, const char *);
  return armed && hit(below(a), EIO) ? -1 : real(a);
}
int mkdir(const char *a, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t);
  return armed && hit(below(a), ENOSPC) ? -1 : real(a, mode);
}
