/*
 * LD_PRELOAD: while the file named by FAULT_DISK_FULL exists no file grows, as
 * on a disk without a free block. What lies within a file may be written over.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int grows(int fd, off_t end)
{
    const char *flag = getenv("FAULT_DISK_FULL");
    struct stat st;
    int is_full, before = errno;

    is_full = fd > 2 && flag && access(flag, F_OK) == 0 &&
              fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && end > st.st_size;
    errno = is_full ? ENOSPC : before;
    return is_full;
}

static off_t here(int fd, size_t n)
{
    return lseek(fd, 0, SEEK_CUR) + (off_t)n;
}

static size_t total(const struct iovec *parts, int n)
{
    size_t size = 0;

    for (int i = 0; i < n; i++)
        size += parts[i].iov_len;
    return size;
}

#define REAL(name) ((__typeof__(&name))(long)dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t n)
{
    return grows(fd, here(fd, n)) ? -1 : REAL(write)(fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return grows(fd, at + (off_t)n) ? -1 : REAL(pwrite)(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t at)
{
    return grows(fd, at + (off_t)n) ? -1 : REAL(pwrite64)(fd, data, n, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at)
{
    return grows(fd, at + (off_t)total(parts, n))
               ? -1
               : REAL(pwritev)(fd, parts, n, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t at)
{
    return grows(fd, at + (off_t)total(parts, n))
               ? -1
               : REAL(pwritev64)(fd, parts, n, at);
}

int posix_fallocate(int fd, off_t at, off_t n)
{
    return grows(fd, at + n) ? ENOSPC : REAL(posix_fallocate)(fd, at, n);
}

int posix_fallocate64(int fd, off_t at, off_t n)
{
    return grows(fd, at + n) ? ENOSPC : REAL(posix_fallocate64)(fd, at, n);
}
