/*
 * blk uses a pmemblk pool through PMDK's own libpmemblk, for pmdk_test.go:
 *
 *	blk create POOL BSIZE SIZE	makes a pool in which nothing is written
 *	blk use POOL			does what the lines of stdin say:
 *					w LBA NUMBER, z LBA, e LBA
 *	blk dump POOL			each block to stdout: 1 byte (0 data, 1 EIO), BSIZE bytes
 *	blk flood POOL SEED		works until it is killed, two threads; before and
 *					after each operation 16 bytes to stdout:
 *					u64 LBA, with bit 63 set after; u64 NUMBER
 *
 * The content of a block written as NUMBER is words that follow from NUMBER, LBA
 * and place; in a flood NUMBER also says what is done, see effect().
 */
#include <errno.h>
#include <fcntl.h>
#include <libpmemblk.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 2
#define FLOOD_BLOCKS 64	/* each thread's own */

static void die(const char *what)
{
	fprintf(stderr, "blk: %s: %s (%s)\n", what, strerror(errno), pmemblk_errormsg());
	exit(1);
}

static uint64_t mix(uint64_t x, uint64_t y)
{
	x += y * 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static void fill(uint8_t *p, size_t n, uint64_t lba, uint64_t number)
{
	for (size_t i = 0; i < n; i += 8) {
		uint64_t w = i == 0 ? number : mix(number << 32 ^ lba, i);
		memcpy(p + i, &w, n - i < 8 ? n - i : 8);
	}
}

static void put(PMEMblkpool *pool, uint8_t *p, uint64_t lba, uint64_t number)
{
	fill(p, pmemblk_bsize(pool), lba, number);
	if (pmemblk_write(pool, p, lba))
		die("write");
}

static void use(PMEMblkpool *pool)
{
	uint8_t *p = malloc(pmemblk_bsize(pool));
	char op;
	uint64_t lba, number;
	while (scanf(" %c %lu", &op, &lba) == 2) {
		switch (op) {
		case 'w':
			if (scanf(" %lu", &number) != 1)
				die("scanf");
			put(pool, p, lba, number);
			break;
		case 'z':
			if (pmemblk_set_zero(pool, lba))
				die("set_zero");
			break;
		case 'e':
			if (pmemblk_set_error(pool, lba))
				die("set_error");
			break;
		}
	}
}

static void dump(PMEMblkpool *pool)
{
	size_t bsize = pmemblk_bsize(pool), n = pmemblk_nblock(pool);
	uint8_t *p = malloc(bsize);
	for (size_t lba = 0; lba < n; lba++) {
		int bad = 0;
		memset(p, 0, bsize);
		if (pmemblk_read(pool, p, lba)) {
			if (errno != EIO)
				die("read");
			bad = 1;
			memset(p, 0, bsize);
		}
		putchar(bad);
		if (fwrite(p, 1, bsize, stdout) != bsize)
			die("stdout");
	}
	fflush(stdout);
}

struct thread {
	PMEMblkpool *pool;
	uint64_t first, seed;
};

static void say(uint64_t lba, uint64_t number)
{
	uint64_t r[2] = { lba, number };
	if (write(1, r, sizeof(r)) != sizeof(r))
		exit(0);	/* nobody listens any more */
}

/* effect does operation NUMBER: mostly a write. */
static void effect(PMEMblkpool *pool, uint8_t *p, uint64_t lba, uint64_t number)
{
	int bad = 0;
	if (number % 16 == 0)
		bad = pmemblk_set_zero(pool, lba);
	else if (number % 16 == 1)
		bad = pmemblk_set_error(pool, lba);
	else
		put(pool, p, lba, number);
	if (bad)
		die("set_zero or set_error");
}

static void *flood(void *arg)
{
	struct thread *t = arg;
	uint8_t *p = malloc(pmemblk_bsize(t->pool));
	for (uint64_t number = 1;; number++) {
		uint64_t lba = t->first + mix(t->seed, number) % FLOOD_BLOCKS;
		say(lba, number);
		effect(t->pool, p, lba, number);
		say(lba | 1ull << 63, number);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "create")) {
		PMEMblkpool *pool = pmemblk_create(argv[2], atol(argv[3]), atol(argv[4]), 0600);
		if (!pool)
			die(argv[2]);
		pmemblk_close(pool);
		return 0;
	}
	if (argc < 3)
		return 2;
	PMEMblkpool *pool = pmemblk_open(argv[2], 0);
	if (!pool)
		die(argv[2]);
	if (!strcmp(argv[1], "use")) {
		use(pool);
	} else if (!strcmp(argv[1], "dump")) {
		dump(pool);
	} else if (!strcmp(argv[1], "flood")) {
		pthread_t id[THREADS];
		struct thread t[THREADS];
		for (int i = 0; i < THREADS; i++) {
			t[i] = (struct thread){ pool, i * FLOOD_BLOCKS, atol(argv[3]) + i };
			if (pthread_create(&id[i], NULL, flood, &t[i]))
				die("thread");
		}
		pthread_join(id[0], NULL);
	} else {
		return 2;
	}
	pmemblk_close(pool);
	return 0;
}
