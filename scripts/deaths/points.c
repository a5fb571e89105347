/* Every change of a file below one folder is a point at which the process can die, or the system call fail.

   Preloaded (LD_PRELOAD), so that calls from Python, Rust and C++ all come through here. Idle until `fault_arm`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_SPACE, INTERRUPT };

static char below[PATH_MAX];
static int action, code;
static long chosen;
static atomic_long seen;
static char what[PATH_MAX + 32]; /* the chosen point, in words */

void fault_arm(const char *folder, int act, long number, int error) {
    snprintf(below, sizeof below, "%s", folder);
    action = act, chosen = number, code = error, what[0] = 0;
    atomic_store(&seen, 0);
}
long fault_seen(void) { return atomic_load(&seen); }
const char *fault_what(void) { return what; }

static int is_below(const char *path) { return below[0] && !strncmp(path, below, strlen(below)); }

static const char *full(int folder, const char *path, char *room) {
    char link[64];
    if (path[0] == '/') return path;
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, room, PATH_MAX - 1);
    if (length < 0) return path;
    snprintf(room + length, PATH_MAX - length, "%s%s", path[0] ? "/" : "", path);
    return room;
}

/* 0: go on. 1: die when it is done. -1: it fails. `takes_space`: what a full disk refuses. */
static int point(const char *name, int folder, const char *path, int takes_space) {
    char room[PATH_MAX + 256];
    if (!below[0]) return 0;
    const char *place = full(folder, path, room);
    if (!is_below(place)) return 0;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (number == chosen) snprintf(what, sizeof what, "%s %s", name, place + strlen(below));
    if (action == FAIL_SPACE && number >= chosen && takes_space) return errno = code, -1;
    if (number != chosen) return 0;
    if (action == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (action == KILL_AFTER) return 1;
    if (action == FAIL_ONCE) return errno = code, -1;
    if (action == INTERRUPT) kill(getpid(), code);
    return 0;
}
static int fd_point(const char *name, int fd, int takes_space) { return below[0] ? point(name, fd, "", takes_space) : 0; }

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define AFTER(call) do { int at_ = (point_); if (at_ < 0) return -1; \
    __typeof__(call) done_ = (call); if (at_) kill(getpid(), SIGKILL); return done_; } while (0)

#define OPEN(symbol, FOLDER, ...) \
    int mode = 0; va_list more; va_start(more, flags); if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(more, int); va_end(more); \
    int point_ = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) ? point("open", FOLDER, path, flags & O_CREAT) : 0; \
    AFTER(real(__VA_ARGS__, flags, mode));

int open(const char *path, int flags, ...) { REAL(int, open, const char *, int, ...); OPEN(open, AT_FDCWD, path) }
int open64(const char *path, int flags, ...) { REAL(int, open64, const char *, int, ...); OPEN(open64, AT_FDCWD, path) }
int openat(int at, const char *path, int flags, ...) { REAL(int, openat, int, const char *, int, ...); OPEN(openat, at, at, path) }
int openat64(int at, const char *path, int flags, ...) { REAL(int, openat64, int, const char *, int, ...); OPEN(openat64, at, at, path) }

/* A write that is cut off by death has put half of its bytes. */
#define WRITE(size, half) int point_ = fd_point("write", fd, 1); \
    if (point_ > 0 && (size) > 1) { half; kill(getpid(), SIGKILL); }
ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    WRITE(size, real(fd, data, size / 2)) AFTER(real(fd, data, size)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    WRITE(size, real(fd, data, size / 2, at)) AFTER(real(fd, data, size, at)); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    WRITE(count, real(fd, parts, count / 2)) AFTER(real(fd, parts, count)); }
ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) {
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    struct stat about; size_t length = fstat(from, &about) ? size : (size_t)about.st_size;
    WRITE(length, real(fd, from, at, length / 2)) AFTER(real(fd, from, at, size)); }
ssize_t sendfile(int fd, int from, off_t *at, size_t size) { return sendfile64(fd, from, (off64_t *)at, size); }
ssize_t copy_file_range(int from, off64_t *in, int fd, off64_t *out, size_t size, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    WRITE(size, real(from, in, fd, out, size / 2, flags)) AFTER(real(from, in, fd, out, size, flags)); }
int ftruncate64(int fd, off64_t size) {
    REAL(int, ftruncate64, int, off64_t); int point_ = fd_point("truncate", fd, 1); AFTER(real(fd, size)); }
int fsync(int fd) { REAL(int, fsync, int); int point_ = fd_point("fsync", fd, 0); AFTER(real(fd)); }

#define ON_PATH(function, word, space, folder, path, parameters, types, values) \
    int function parameters { REAL(int, function, types); int point_ = point(word, folder, path, space); AFTER(real values); }
#define ARGS(...) __VA_ARGS__
ON_PATH(unlink, "unlink", 0, AT_FDCWD, path, (const char *path), ARGS(const char *), (path))
ON_PATH(unlinkat, "unlink", 0, at, path, (int at, const char *path, int flags), ARGS(int, const char *, int), (at, path, flags))
ON_PATH(rmdir, "rmdir", 0, AT_FDCWD, path, (const char *path), ARGS(const char *), (path))
ON_PATH(mkdir, "mkdir", 1, AT_FDCWD, path, (const char *path, mode_t mode), ARGS(const char *, mode_t), (path, mode))
ON_PATH(chmod, "chmod", 0, AT_FDCWD, path, (const char *path, mode_t mode), ARGS(const char *, mode_t), (path, mode))
ON_PATH(rename, "rename", 0, AT_FDCWD, old, (const char *old, const char *new), ARGS(const char *, const char *), (old, new))
ON_PATH(renameat, "rename", 0, a, old, (int a, const char *old, int b, const char *new), ARGS(int, const char *, int, const char *), (a, old, b, new))
ON_PATH(renameat2, "exchange", 0, a, old, (int a, const char *old, int b, const char *new, unsigned flags),
        ARGS(int, const char *, int, const char *, unsigned), (a, old, b, new, flags))
