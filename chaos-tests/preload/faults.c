/*
 * Faults of disk and clock, loaded before everything else into a process
 * (LD_PRELOAD). It stands between the process and libc for the files of one
 * folder, and does what the test writes into a control file, which both have
 * mapped or open. src/faultfs describes the control file and reads the journal.
 *
 *   FAULTS_CONTROL  the control file; without it nothing is done
 *   FAULTS_FOLDER   the folder whose files are meant, an absolute path without links
 *   FAULTS_JOURNAL  a folder on the same disk for what is needed to undo what was
 *                   not synced, as a loss of power would; without it none is kept
 *
 * A change is journaled before it is made, so that a kill at any moment leaves a
 * journal that knows at least as much as was done. What the journal could not
 * follow (shared writable mappings, copies inside the kernel) is refused with an
 * error that programs know how to go around, or that they stop with.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* ---- the control file: words of 64 bits; src/faultfs/control.rs has the same */

#define MAGIC 0x314c54554146ull /* "FAULT1" */
#define FILTER_WORD 64
#define FILTER_BYTES 256
#define CONTROL_BYTES 4096

enum { READS = 0, WRITES = 1, SYNCS = 2, NAMES = 3 };

struct class {
    _Atomic uint64_t left; /* so many fail from now on; UINT64_MAX: all */
    _Atomic uint64_t error; /* errno */
    _Atomic uint64_t hits; /* so many have failed */
    _Atomic uint64_t seen; /* so many there were */
};

struct control {
    uint64_t magic;
    uint64_t reserved[7];
    struct class classes[4];
    _Atomic uint64_t short_left, short_hits; /* writes that take half */
    _Atomic uint64_t sync_delay_ms, sync_delays;
    _Atomic int64_t clock_offset_ns, clock_drift_ppm, clock_drift_since_ns;
    _Atomic uint64_t clock_reads;
    _Atomic uint64_t refused; /* calls that the journal could not follow */
    _Atomic uint64_t broken; /* the journal could not be written */
    _Atomic uint64_t lying_syncs, lies; /* syncs that say they have synced */
};

_Static_assert(sizeof(struct control) <= FILTER_WORD * 8, "the filter stands behind the words");

static struct control *control;
static char folder[PATH_MAX];
static size_t folder_bytes;
static char journal[PATH_MAX];
static int tree = -1; /* journal of names */
static uint64_t tree_records;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- real calls, past libc */

static int real_open(int at, const char *path, int flags, mode_t mode) {
    return (int)syscall(SYS_openat, at, path, flags, mode);
}
static int real_close(int fd) { return (int)syscall(SYS_close, fd); }
static ssize_t real_write(int fd, const void *data, size_t bytes) { return syscall(SYS_write, fd, data, bytes); }
static ssize_t real_pread(int fd, void *data, size_t bytes, off_t at) {
    return syscall(SYS_pread64, fd, data, bytes, at);
}
static int real_ftruncate(int fd, off_t length) { return (int)syscall(SYS_ftruncate, fd, length); }
static int real_unlink(const char *path) { return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0); }

/* ---- the journal of one file: what was written since its last sync */

enum { RECORD_WRITE = 1, RECORD_LENGTH = 2, RECORD_SYNCED = 3, RECORD_FAILED = 4 };

struct record { /* then old_bytes of old content, then new_bytes of new content */
    uint32_t magic, kind;
    uint64_t offset; /* of the content; SYNCED and FAILED: records that it is about */
    uint64_t old_length; /* of the file before */
    uint64_t new_length; /* LENGTH: of the file afterwards */
    uint64_t old_bytes, new_bytes;
};
#define RECORD_MAGIC 0x6a726e6cu

struct file {
    dev_t device;
    ino_t number;
    unsigned users;
    int journal;
    uint64_t records;
    uint64_t generation; /* grows when the journal is emptied */
    int failed; /* a sync has failed: what was written before may never get to the disk */
    char path[PATH_MAX];
};

#define FDS_MAX 65536
#define DIRECTORY ((struct file *)1)
static int fds_end; /* no descriptor from here on was ever one of ours */
static struct file *files[FDS_MAX]; /* by descriptor; DIRECTORY: a folder of ours */

static struct file *file_of(int fd) {
    struct file *file = fd >= 0 && fd < FDS_MAX ? files[fd] : NULL;
    return file == DIRECTORY ? NULL : file;
}

static void fail_journal(void) {
    if (control) atomic_fetch_add(&control->broken, 1);
}

static void append(int fd, const struct iovec *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    if (syscall(SYS_writev, fd, parts, count) != (ssize_t)bytes) fail_journal();
}

static uint64_t count_records(int fd, int *failed) {
    uint64_t count = 0;
    off_t at = 0;
    struct record record;
    while (real_pread(fd, &record, sizeof record, at) == sizeof record && record.magic == RECORD_MAGIC) {
        if (record.kind == RECORD_WRITE || record.kind == RECORD_LENGTH) count++;
        if (record.kind == RECORD_FAILED) *failed = 1;
        at += (off_t)(sizeof record + record.old_bytes + record.new_bytes);
    }
    /* A record that a kill cut off is not followed by another one. */
    if (real_ftruncate(fd, at) != 0) fail_journal();
    return count;
}

static void name_of_journal(char *path, ino_t number) {
    snprintf(path, PATH_MAX, "%.4000s/%llu", journal, (unsigned long long)number);
}

static struct file *track(int fd, const char *path, int is_new) {
    struct stat state;
    if (fd < 0 || fd >= FDS_MAX || fstat(fd, &state) != 0) return NULL;
    if (fd >= fds_end) fds_end = fd + 1;
    if (S_ISDIR(state.st_mode)) return files[fd] = DIRECTORY;
    if (!S_ISREG(state.st_mode)) return files[fd] = NULL;
    for (int other = 0; other < fds_end; other++) {
        struct file *file = file_of(other);
        if (other != fd && file && file->number == state.st_ino && file->device == state.st_dev) {
            file->users++;
            return files[fd] = file;
        }
    }
    struct file *file = calloc(1, sizeof *file);
    if (!file) abort();
    file->device = state.st_dev;
    file->number = state.st_ino;
    file->users = 1;
    file->journal = -1;
    snprintf(file->path, sizeof file->path, "%s", path);
    if (journal[0]) {
        char name[PATH_MAX];
        name_of_journal(name, state.st_ino);
        if (is_new) real_unlink(name); /* of a file that had the number before */
        file->journal = real_open(AT_FDCWD, name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (file->journal < 0) fail_journal();
        else file->records = count_records(file->journal, &file->failed);
    }
    return files[fd] = file;
}

static void untrack(int fd) {
    struct file *file = file_of(fd);
    if (fd >= 0 && fd < FDS_MAX) files[fd] = NULL;
    if (file && --file->users == 0) {
        if (file->journal >= 0) real_close(file->journal);
        free(file);
    }
}

static void retrack(int from, int to) {
    if (to < 0 || to >= FDS_MAX) return;
    pthread_mutex_lock(&lock);
    untrack(to);
    struct file *file = from >= 0 && from < FDS_MAX ? files[from] : NULL;
    files[to] = file;
    if (file && to >= fds_end) fds_end = to + 1;
    if (file && file != DIRECTORY) file->users++;
    pthread_mutex_unlock(&lock);
}

/* Remembers what a change of [offset, offset + bytes) to these parts undoes. */
static void remember(struct file *file, int fd, uint32_t kind, uint64_t offset, uint64_t new_length,
                     const struct iovec *parts, int count, size_t bytes) {
    struct stat state;
    if (file->journal < 0) return;
    if (fstat(fd, &state) != 0) {
        fail_journal();
        return;
    }
    uint64_t length = (uint64_t)state.st_size;
    uint64_t end = kind == RECORD_LENGTH ? length : offset + bytes;
    uint64_t old_bytes = length > offset ? (end < length ? end : length) - offset : 0;
    char *old = malloc(old_bytes ? old_bytes : 1);
    if (!old) abort();
    if (old_bytes) {
        /* The descriptor may be one that only writes. */
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        int reader = real_open(AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0);
        if (reader < 0 || real_pread(reader, old, old_bytes, (off_t)offset) != (ssize_t)old_bytes) fail_journal();
        if (reader >= 0) real_close(reader);
    }
    struct record record = { RECORD_MAGIC, kind, offset, length, new_length, old_bytes, bytes };
    struct iovec all[2 + IOV_MAX] = { { &record, sizeof record }, { old, old_bytes } };
    if (count > IOV_MAX - 2) {
        fail_journal();
    } else {
        for (int i = 0; i < count; i++) all[2 + i] = parts[i];
        append(file->journal, all, 2 + count);
        file->records++;
    }
    free(old);
}

static void mark(struct file *file, uint32_t kind, uint64_t records) {
    if (file->journal < 0) return;
    struct record record = { RECORD_MAGIC, kind, records, 0, 0, 0, 0 };
    append(file->journal, &(struct iovec){ &record, sizeof record }, 1);
}

/* ---- paths */

static int is_ours(const char *path) {
    return folder_bytes && strncmp(path, folder, folder_bytes) == 0 &&
           (path[folder_bytes] == '/' || path[folder_bytes] == 0);
}

static void absolute(int at, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (at == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) base[0] = 0;
    } else {
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", at);
        ssize_t bytes = readlink(name, base, sizeof base - 1);
        base[bytes > 0 ? bytes : 0] = 0;
    }
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
}

/* ---- the journal of names */

static void name_record(const char *what, const char *first, const char *second, const char *third) {
    if (tree < 0) return;
    char line[3 * PATH_MAX + 64];
    int bytes = snprintf(line, sizeof line, "%s\t%s\t%s\t%s\n", what, first, second, third);
    append(tree, &(struct iovec){ line, (size_t)bytes }, 1);
    tree_records++;
}

/* Keeps a file that is about to lose its name; tells under which one. */
static void save(const char *path, char *saved) {
    struct timespec now;
    saved[0] = 0;
    if (tree < 0 || faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0) return;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    snprintf(saved, PATH_MAX, "%.3900s/saved-%lld-%lld", journal, (long long)now.tv_sec, (long long)now.tv_nsec);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, saved, 0) != 0) fail_journal();
}

/* ---- faults */

static int is_filtered(const char *path) {
    const char *filter = (const char *)control + FILTER_WORD * 8;
    return filter[0] && !strstr(path, filter);
}

static int take(_Atomic uint64_t *left, _Atomic uint64_t *hits) {
    uint64_t now = atomic_load(left);
    while (now) {
        if (now == UINT64_MAX || atomic_compare_exchange_weak(left, &now, now - 1)) {
            atomic_fetch_add(hits, 1);
            return 1;
        }
    }
    return 0;
}

/* Whether a call of this class fails now; sets errno. */
static int fails(int which, const char *path) {
    if (!control) return 0;
    struct class *class = &control->classes[which];
    atomic_fetch_add(&class->seen, 1);
    if (!atomic_load(&class->left) || is_filtered(path) || !take(&class->left, &class->hits)) return 0;
    errno = (int)atomic_load(&class->error);
    return 1;
}

static void sleep_ms(uint64_t milliseconds) {
    struct timespec left = { (time_t)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000 };
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (!path) return;
    int fd = real_open(AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    void *map = MAP_FAILED;
    if (fd >= 0) map = (void *)syscall(SYS_mmap, NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED || ((struct control *)map)->magic != MAGIC) {
        dprintf(2, "faults: %s is no control file\n", path);
        _exit(99);
    }
    real_close(fd);
    const char *own = getenv("FAULTS_FOLDER");
    snprintf(folder, sizeof folder, "%s", own ? own : "");
    folder_bytes = strlen(folder);
    const char *undo = getenv("FAULTS_JOURNAL");
    snprintf(journal, sizeof journal, "%s", undo ? undo : "");
    control = map;
    if (journal[0]) {
        char name[PATH_MAX];
        snprintf(name, sizeof name, "%.4000s/tree", journal);
        tree = real_open(AT_FDCWD, name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (tree < 0) fail_journal();
        char chunk[4096];
        off_t at = 0, whole = 0;
        for (ssize_t bytes; (bytes = real_pread(tree, chunk, sizeof chunk, at)) > 0; at += bytes) {
            for (ssize_t i = 0; i < bytes; i++) {
                if (chunk[i] != '\n') continue;
                tree_records++;
                whole = at + i + 1;
            }
        }
        if (tree >= 0 && real_ftruncate(tree, whole) != 0) fail_journal();
    }
}

/* ---- opening and closing */

static int resize(struct file *file, int fd, off_t length) {
    remember(file, fd, RECORD_LENGTH, (uint64_t)length, (uint64_t)length, NULL, 0, 0);
    return real_ftruncate(fd, length);
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    char name[PATH_MAX];
    if (!control) return real_open(at, path, flags, mode);
    absolute(at, path, name);
    if (!is_ours(name)) {
        int fd = real_open(at, path, flags, mode);
        if (fd >= 0 && fd < FDS_MAX && files[fd]) {
            pthread_mutex_lock(&lock);
            untrack(fd); /* closed behind our back */
            pthread_mutex_unlock(&lock);
        }
        return fd;
    }
    int unnamed = (flags & O_TMPFILE) == O_TMPFILE;
    int is_new = (flags & O_CREAT) && faccessat(AT_FDCWD, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
    if (is_new && fails(NAMES, name)) return -1;
    pthread_mutex_lock(&lock);
    if (is_new) name_record("create", name, "", "");
    int cut = !unnamed && (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY;
    int fd = real_open(at, path, cut ? flags & ~O_TRUNC : flags, mode);
    if (fd >= 0) {
        untrack(fd);
        struct file *file = track(fd, name, is_new);
        if (cut && file && file != DIRECTORY) {
            struct stat state;
            if (fstat(fd, &state) == 0 && state.st_size > 0 && resize(file, fd, 0) != 0) {
                int error = errno;
                untrack(fd);
                real_close(fd);
                errno = error;
                fd = -1;
            }
        }
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE_OF(flags, last, mode)                          \
    mode_t mode = 0;                                        \
    if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list list;                                       \
        va_start(list, last);                               \
        mode = va_arg(list, mode_t);                        \
        va_end(list);                                       \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags, flags, mode);
    return do_open(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE_OF(flags, flags, mode);
    return do_open(AT_FDCWD, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags, flags, mode);
    return do_open(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags, flags, mode);
    return do_open(at, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd) {
    if (fd >= 0 && fd < FDS_MAX && files[fd]) {
        pthread_mutex_lock(&lock);
        untrack(fd);
        pthread_mutex_unlock(&lock);
    }
    return real_close(fd);
}

int dup(int fd) {
    int copy = (int)syscall(SYS_dup, fd);
    if (copy >= 0) retrack(fd, copy);
    return copy;
}
int dup3(int fd, int to, int flags) {
    int copy = (int)syscall(SYS_dup3, fd, to, flags);
    if (copy >= 0) retrack(fd, copy);
    return copy;
}
int dup2(int fd, int to) {
    if (fd == to) return fcntl(fd, F_GETFD) < 0 ? -1 : fd;
    return dup3(fd, to, 0);
}
static int do_fcntl(int fd, int command, long argument) {
    int result = (int)syscall(SYS_fcntl, fd, command, argument);
    if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC)) retrack(fd, result);
    return result;
}
int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
    return do_fcntl(fd, command, argument);
}
int fcntl64(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
    return do_fcntl(fd, command, argument);
}

/* ---- reading */

static int read_fails(int fd) {
    struct file *file = file_of(fd);
    return file && fails(READS, file->path);
}
ssize_t read(int fd, void *data, size_t bytes) { return read_fails(fd) ? -1 : syscall(SYS_read, fd, data, bytes); }
ssize_t pread(int fd, void *data, size_t bytes, off_t at) {
    return read_fails(fd) ? -1 : real_pread(fd, data, bytes, at);
}
ssize_t pread64(int fd, void *data, size_t bytes, off64_t at) { return pread(fd, data, bytes, at); }
ssize_t readv(int fd, const struct iovec *parts, int count) {
    return read_fails(fd) ? -1 : syscall(SYS_readv, fd, parts, count);
}
ssize_t preadv(int fd, const struct iovec *parts, int count, off_t at) {
    return read_fails(fd) ? -1 : syscall(SYS_preadv, fd, parts, count, at, 0);
}
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at) { return preadv(fd, parts, count, at); }

/* ---- writing */

/* `at` is -1 for the descriptor's own place. */
static ssize_t do_write(int fd, const struct iovec *parts, int count, off_t at) {
    struct file *file = file_of(fd);
    struct iovec one;
    if (file) {
        if (fails(WRITES, file->path)) return -1;
        size_t bytes = 0;
        for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
        if (bytes > 1 && atomic_load(&control->short_left) && !is_filtered(file->path) &&
            take(&control->short_left, &control->short_hits)) {
            one = parts[0];
            if (one.iov_len > 1) one.iov_len /= 2;
            parts = &one;
            count = 1;
            bytes = one.iov_len;
        }
        pthread_mutex_lock(&lock);
        off_t place = at;
        struct stat state;
        if (at < 0 && (syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND)) {
            place = fstat(fd, &state) == 0 ? state.st_size : 0;
        } else if (at < 0) {
            place = (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
        }
        remember(file, fd, RECORD_WRITE, (uint64_t)place, 0, parts, count, bytes);
    }
    ssize_t written = at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
    if (file) {
        int error = errno;
        pthread_mutex_unlock(&lock);
        errno = error;
    }
    return written;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    if (!file_of(fd)) return real_write(fd, data, bytes);
    return do_write(fd, &(struct iovec){ (void *)data, bytes }, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    if (!file_of(fd)) return syscall(SYS_pwrite64, fd, data, bytes, at);
    return do_write(fd, &(struct iovec){ (void *)data, bytes }, 1, at);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) { return pwrite(fd, data, bytes, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return do_write(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return do_write(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return do_write(fd, parts, count, at); }

int ftruncate(int fd, off_t length) {
    struct file *file = file_of(fd);
    if (!file) return real_ftruncate(fd, length);
    if (fails(WRITES, file->path)) return -1;
    pthread_mutex_lock(&lock);
    int result = resize(file, fd, length);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }
int truncate(const char *path, off_t length) {
    int fd = do_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = ftruncate(fd, length);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}
int truncate64(const char *path, off64_t length) { return truncate(path, length); }

/* Programs that are told that it is not supported write zeros instead, or do without. */
static int is_refused(int fd) {
    if (!file_of(fd) || !journal[0]) return 0;
    atomic_fetch_add(&control->refused, 1);
    return 1;
}
int fallocate(int fd, int mode, off_t at, off_t length) {
    if (!is_refused(fd)) return (int)syscall(SYS_fallocate, fd, mode, at, length);
    errno = EOPNOTSUPP;
    return -1;
}
int fallocate64(int fd, int mode, off64_t at, off64_t length) { return fallocate(fd, mode, at, length); }
int posix_fallocate(int fd, off_t at, off_t length) {
    return is_refused(fd) ? EOPNOTSUPP : (syscall(SYS_fallocate, fd, 0, at, length) == 0 ? 0 : errno);
}
int posix_fallocate64(int fd, off64_t at, off64_t length) { return posix_fallocate(fd, at, length); }
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t bytes, unsigned flags) {
    if (!file_of(out) && !file_of(in)) return syscall(SYS_copy_file_range, in, in_at, out, out_at, bytes, flags);
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile(int out, int in, off_t *at, size_t bytes) {
    if (!file_of(out)) return syscall(SYS_sendfile, out, in, at, bytes);
    errno = EINVAL;
    return -1;
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t bytes) { return sendfile(out, in, at, bytes); }
void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t at) {
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && !(flags & MAP_ANONYMOUS) && is_refused(fd)) {
        errno = ENODEV;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, at);
}
void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off64_t at) {
    return mmap(address, bytes, protection, flags, fd, at);
}

/* ---- syncing */

static void path_of_folder(int fd, char *path) {
    absolute(fd, "", path);
    size_t bytes = strlen(path);
    if (bytes && path[bytes - 1] == '/') path[bytes - 1] = 0;
}

/* `counts`: afterwards what was written before is on the disk. */
static int do_sync(int fd, long call, int counts) {
    struct file *file = fd >= 0 && fd < FDS_MAX ? files[fd] : NULL;
    if (!file || !control) return (int)syscall(call, fd);
    char path[PATH_MAX];
    if (file == DIRECTORY) path_of_folder(fd, path);
    else snprintf(path, sizeof path, "%s", file->path);
    uint64_t delay_ms = atomic_load(&control->sync_delay_ms);
    if (delay_ms && !is_filtered(path)) {
        atomic_fetch_add(&control->sync_delays, 1);
        sleep_ms(delay_ms);
    }
    pthread_mutex_lock(&lock);
    int is_folder = file == DIRECTORY;
    uint64_t records = is_folder ? tree_records : file->records;
    uint64_t generation = is_folder ? 0 : file->generation;
    if (fails(SYNCS, path)) {
        int error = errno;
        if (!is_folder) {
            mark(file, RECORD_FAILED, records);
            file->failed = 1;
        }
        pthread_mutex_unlock(&lock);
        errno = error;
        return -1;
    }
    pthread_mutex_unlock(&lock);
    if (atomic_load(&control->lying_syncs) && !is_filtered(path)) {
        atomic_fetch_add(&control->lies, 1);
        return 0;
    }
    int result = (int)syscall(call, fd);
    int error = errno;
    if (result == 0 && counts) {
        pthread_mutex_lock(&lock);
        if (is_folder) {
            char number[32];
            snprintf(number, sizeof number, "%llu", (unsigned long long)records);
            name_record("synced", path, number, "");
        } else if (files[fd] == file && file->generation == generation && file->journal >= 0) {
            if (file->records == records && !file->failed) {
                if (real_ftruncate(file->journal, 0) != 0) fail_journal();
                file->records = 0;
                file->generation++;
            } else {
                mark(file, RECORD_SYNCED, records);
            }
        }
        pthread_mutex_unlock(&lock);
    }
    errno = error;
    return result;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync, 1); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync, 1); }
int sync_file_range(int fd, off64_t at, off64_t bytes, unsigned flags) {
    struct file *file = file_of(fd);
    /* It promises nothing of the disk's cache or the file's length. */
    if (file && fails(SYNCS, file->path)) return -1;
    return (int)syscall(SYS_sync_file_range, fd, at, bytes, flags);
}

/* ---- names */

static int do_rename(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char old[PATH_MAX], new[PATH_MAX], saved[PATH_MAX], number[32];
    struct stat state;
    if (control) {
        absolute(from_at, from, old);
        absolute(to_at, to, new);
    }
    if (!control || !(is_ours(old) || is_ours(new)))
        return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (fails(NAMES, new)) return -1;
    pthread_mutex_lock(&lock);
    save(new, saved);
    snprintf(number, sizeof number, "%llu", lstat(old, &state) == 0 ? (unsigned long long)state.st_ino : 0ull);
    char both[2 * PATH_MAX];
    snprintf(both, sizeof both, "%s\t%s", new, saved);
    name_record("rename", old, both, number);
    int result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to) { return do_rename(from_at, from, to_at, to, 0); }
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    return do_rename(from_at, from, to_at, to, flags);
}

int unlinkat(int at, const char *path, int flags) {
    char name[PATH_MAX], saved[PATH_MAX];
    if (control) absolute(at, path, name);
    if (!control || !is_ours(name)) return (int)syscall(SYS_unlinkat, at, path, flags);
    if (fails(NAMES, name)) return -1;
    pthread_mutex_lock(&lock);
    if (flags & AT_REMOVEDIR) {
        name_record("rmdir", name, "", "");
    } else {
        save(name, saved);
        name_record("unlink", name, saved, "");
    }
    int result = (int)syscall(SYS_unlinkat, at, path, flags);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
    char name[PATH_MAX];
    if (control) absolute(at, path, name);
    if (!control || !is_ours(name)) return (int)syscall(SYS_mkdirat, at, path, mode);
    if (fails(NAMES, name)) return -1;
    pthread_mutex_lock(&lock);
    if (faccessat(AT_FDCWD, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0) name_record("mkdir", name, "", "");
    int result = (int)syscall(SYS_mkdirat, at, path, mode);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* ---- the clock */

static int real_clock(clockid_t clock, struct timespec *time) {
    static _Atomic(void *) found;
    void *next = atomic_load(&found);
    if (!next) {
        next = dlsym(RTLD_NEXT, "clock_gettime");
        atomic_store(&found, next);
    }
    /* The kernel's own, without a system call. */
    if (next) return ((int (*)(clockid_t, struct timespec *))next)(clock, time);
    return (int)syscall(SYS_clock_gettime, clock, time);
}

static int64_t clock_error(void) {
    int64_t offset = atomic_load(&control->clock_offset_ns), ppm = atomic_load(&control->clock_drift_ppm);
    if (ppm) {
        struct timespec now;
        real_clock(CLOCK_MONOTONIC, &now);
        int64_t since = now.tv_sec * 1000000000ll + now.tv_nsec - atomic_load(&control->clock_drift_since_ns);
        offset += (int64_t)((double)since * (double)ppm / 1e6);
    }
    return offset;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = real_clock(clock, time);
    if (result == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        atomic_fetch_add_explicit(&control->clock_reads, 1, memory_order_relaxed);
        int64_t now = time->tv_sec * 1000000000ll + time->tv_nsec + clock_error();
        if (now < 0) now = 0;
        time->tv_sec = now / 1000000000ll;
        time->tv_nsec = now % 1000000000ll;
    }
    return result;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    if (result == 0) {
        time->tv_sec = now.tv_sec;
        time->tv_usec = now.tv_nsec / 1000;
    }
    return result;
}
time_t time(time_t *place) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
