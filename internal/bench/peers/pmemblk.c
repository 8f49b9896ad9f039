/*
 * Random or sequential blocks through libpmemblk: the peer of the engine.
 *
 *	pmemblk POOL BSIZE POOLBYTES read|write THREADS SECONDS
 *
 * Prints operations per second and CPU seconds for each. PMEM_IS_PMEM_FORCE=1 makes it treat a file on
 * tmpfs as persistent memory, as the engine's ForceDAX does.
 */
#include <libpmemblk.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static PMEMblkpool *pool;
static size_t bsize, nblock;
static int writing;
static volatile int stop;

static uint64_t next(uint64_t *s) { /* xorshift64* */
	*s ^= *s >> 12; *s ^= *s << 25; *s ^= *s >> 27;
	return *s * 2685821657736338717ULL;
}

static void *worker(void *arg) {
	uint64_t seed = 88172645463325252ULL + (uintptr_t)arg, n = 0;
	char *buf = aligned_alloc(4096, bsize < 4096 ? 4096 : bsize);
	memset(buf, 1, bsize);
	while (!stop) {
		long long block = (long long)(next(&seed) % nblock);
		int rc = writing ? pmemblk_write(pool, buf, block) : pmemblk_read(pool, buf, block);
		if (rc != 0) { perror("pmemblk"); exit(1); }
		n++;
	}
	return (void *)(uintptr_t)n;
}

static double cpu_time(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
	if (argc != 7) { fprintf(stderr, "usage: pmemblk POOL BSIZE POOLBYTES read|write THREADS SECONDS\n"); return 64; }
	bsize = strtoul(argv[2], 0, 0);
	writing = strcmp(argv[4], "write") == 0;
	int threads = atoi(argv[5]);
	pool = pmemblk_open(argv[1], bsize);
	if (!pool) {
		pool = pmemblk_create(argv[1], bsize, strtoul(argv[3], 0, 0), 0600);
		if (!pool) { perror(argv[1]); return 1; }
		nblock = pmemblk_nblock(pool);
		char *buf = calloc(1, bsize);
		for (size_t i = 0; i < nblock; i++) /* every block has data, so reads copy */
			if (pmemblk_write(pool, buf, i) != 0) { perror("fill"); return 1; }
	}
	nblock = pmemblk_nblock(pool);
	char *warm = aligned_alloc(4096, bsize < 4096 ? 4096 : bsize);
	for (size_t i = 0; i < nblock; i++) /* all pages are mapped before the clock starts */
		if (pmemblk_read(pool, warm, i) != 0) { perror("warm up"); return 1; }
	pthread_t t[64];
	struct timespec a, b, nap = { .tv_sec = (time_t)atof(argv[6]), .tv_nsec = (long)((atof(argv[6]) - (time_t)atof(argv[6])) * 1e9) };
	clock_gettime(CLOCK_MONOTONIC, &a);
	double cpu = cpu_time();
	for (int i = 0; i < threads; i++) pthread_create(&t[i], 0, worker, (void *)(uintptr_t)(i + 1));
	nanosleep(&nap, 0);
	stop = 1;
	uint64_t n = 0;
	for (int i = 0; i < threads; i++) { void *r; pthread_join(t[i], &r); n += (uintptr_t)r; }
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%.0f %.12f\n", n / ((b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9), (cpu_time() - cpu) / n);
	pmemblk_close(pool);
	return 0;
}
