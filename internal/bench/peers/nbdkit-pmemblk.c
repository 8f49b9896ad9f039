/*
 * nbdkit plugin over libpmemblk: the peer of the server, doing the same job.
 *
 *	nbdkit ./nbdkit-pmemblk.so pool=FILE bytes=N	(blocks of 4096)
 *
 * Requests are whole blocks. libpmemblk is thread safe, and durable on return.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <libpmemblk.h>
#include <stdlib.h>
#include <string.h>

#define BSIZE 4096
static char *path;
static size_t bytes;
static PMEMblkpool *pool;

static int config(const char *key, const char *value) {
	if (strcmp(key, "pool") == 0) path = nbdkit_absolute_path(value);
	else if (strcmp(key, "bytes") == 0) bytes = strtoul(value, 0, 0);
	else { nbdkit_error("unknown key %s", key); return -1; }
	return 0;
}
static int get_ready(void) {
	pool = pmemblk_open(path, BSIZE);
	if (!pool) pool = pmemblk_create(path, BSIZE, bytes, 0600);
	if (!pool) { nbdkit_error("%s: %s", path, pmemblk_errormsg()); return -1; }
	return 0;
}
static void *p_open(int readonly) { return pool; }
static int64_t get_size(void *h) { return (int64_t)pmemblk_nblock(pool) * BSIZE; }
static int p_pread(void *h, void *buf, uint32_t n, uint64_t off, uint32_t flags) {
	for (; n; n -= BSIZE, off += BSIZE, buf = (char *)buf + BSIZE)
		if (pmemblk_read(pool, buf, off / BSIZE) != 0) return -1;
	return 0;
}
static int p_pwrite(void *h, const void *buf, uint32_t n, uint64_t off, uint32_t flags) {
	for (; n; n -= BSIZE, off += BSIZE, buf = (const char *)buf + BSIZE)
		if (pmemblk_write(pool, buf, off / BSIZE) != 0) return -1;
	return 0;
}
static int p_flush(void *h, uint32_t flags) { return 0; }
static int one(void *h) { return 1; }
static int fua(void *h) { return NBDKIT_FUA_NATIVE; }

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
static struct nbdkit_plugin plugin = {
	.name = "pmemblk", .config = config, .get_ready = get_ready, .open = p_open, .get_size = get_size,
	.pread = p_pread, .pwrite = p_pwrite, .flush = p_flush, .can_fua = fua, .can_multi_conn = one,
};
NBDKIT_REGISTER_PLUGIN(plugin)
