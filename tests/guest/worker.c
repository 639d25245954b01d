/*
 * The whole user space of the test guest: one process that notices when memory and disk stop
 * belonging to the same moment.
 *
 * `worker CONSOLE DISKS PERIOD`, as in /dev/ttyS0 and /dev/vd, or /dev/hvc0 and /dev/xvd on Xen, and
 * milliseconds.
 *
 * Once a period it reads its record back from every such disk, past the page cache, and compares
 * it with what its memory says it wrote last:
 *
 *   START n              first look after boot: there is no memory yet, the disk says n
 *   MATCH n              memory and every disk agree on n
 *   MISMATCH mem=m disk=d on vdX
 *
 * then it writes the next number everywhere and goes on.  A revert that restored one without the
 * other cannot hide.  Lines typed on the console:
 *
 *   lie     write a wrong number to the first disk behind the memory's back (negative control)
 *   say X   print X
 *   flood N from now on write into each of N clusters of the first disk, one after the other, over
 *           and over, as fast as it takes them (0: no more)
 *   off     power off
 *   var X   write X into a UEFI variable, var? says what it holds
 *   nv X    write X into a persistent index of the TPM, nv? says what it holds
 *
 * The ACPI power button powers off as well, so that virsh shutdown works.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, OFFSET = 1 << 20, DISKS = 4, BUTTONS = 4 };
enum { CLUSTER = 64 << 10, FLOOD = 2 << 20, FLOODED = 128 };
static const char MAGIC[] = "virtsnap counter ";

static int console;
static const char *name; /* of the disks, without their letter */
static int disk[DISKS];
static int disks;
static int button[BUTTONS];
static int buttons;
static char *block;
static int flood; /* clusters, of which there are FLOODED at FLOOD */

static void say(const char *format, ...)
{
	char line[512];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 1)
		length = sizeof line - 1;
	if (write(console, line, length) != length)
		_exit(1);
}

/* The number on this disk; 0 on a disk that never had one; -1 when it cannot be read. */
static long read_counter(int i)
{
	memset(block, 0, BLOCK);
	if (pread(disk[i], block, BLOCK, OFFSET) != BLOCK) {
		say("ERROR read %s%c: %s\n", name, 'a' + i, strerror(errno));
		return -1;
	}
	block[BLOCK - 1] = 0;
	return strncmp(block, MAGIC, sizeof MAGIC - 1) ? 0 : atol(block + sizeof MAGIC - 1);
}

static void write_counter(int i, long n)
{
	memset(block, 0, BLOCK);
	snprintf(block, BLOCK, "%s%ld\n", MAGIC, n);
	if (pwrite(disk[i], block, BLOCK, OFFSET) != BLOCK)
		say("ERROR write %s%c: %s\n", name, 'a' + i, strerror(errno));
}

static void flood_on(void)
{
	static unsigned long turn;
	snprintf(block, BLOCK, "flood %lu\n", ++turn);
	if (pwrite(disk[0], block, BLOCK, FLOOD + turn % flood * CLUSTER) != BLOCK)
		say("ERROR flood: %s\n", strerror(errno));
}

static void power_off(void)
{
	say("POWEROFF\n");
	tcdrain(console);
	sync();
	reboot(RB_POWER_OFF);
}

static const char VARIABLE[] =
	"/sys/firmware/efi/efivars/VirtsnapTest-5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11";

static void write_variable(const char *text)
{
	char value[64] = { 7, 0, 0, 0 }; /* non-volatile, at boot and at run time */
	int flags = 0, old = open(VARIABLE, O_RDONLY);
	if (old >= 0) {
		ioctl(old, FS_IOC_SETFLAGS, &flags); /* it was made immutable */
		close(old);
	}
	int fd = open(VARIABLE, O_WRONLY | O_CREAT, 0644);
	int length = 4 + snprintf(value + 4, sizeof value - 4, "%s", text);
	if (fd < 0 || write(fd, value, length) != length)
		say("ERROR variable: %s\n", strerror(errno));
	else
		say("VAR %s\n", text);
	close(fd);
}

static void read_variable(void)
{
	char value[64] = { 0 };
	int fd = open(VARIABLE, O_RDONLY);
	if (fd < 0 || read(fd, value, sizeof value - 1) <= 4)
		say("VAR none\n");
	else
		say("VAR %s\n", value + 4);
	close(fd);
}

/* A TPM 2.0 command; gives its result code, and the response in `bytes`. */
static long tpm(unsigned char *bytes, int length)
{
	int fd = open("/dev/tpm0", O_RDWR);
	bytes[5] = length;
	long code = -1;
	if (fd >= 0 && write(fd, bytes, length) == length && read(fd, bytes, 128) >= 10)
		code = (long)bytes[6] << 24 | bytes[7] << 16 | bytes[8] << 8 | bytes[9];
	close(fd);
	return code;
}

#define HEAD(code) 0x80, 2, 0, 0, 0, 0, 0, 0, 1, code
#define OWNER 0x40, 0, 0, 1
#define INDEX 1, 0x50, 0, 0x20
#define PASSWORD 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0

static void write_index(const char *text)
{
	unsigned char define[128] = { HEAD(0x2a), OWNER, PASSWORD, 0, 0, 0, 14, INDEX, 0, 11,
				      2, 6, 0, 6, 0, 0, 0, 8 };
	unsigned char write[128] = { HEAD(0x37), OWNER, INDEX, PASSWORD, 0, 8 };
	tpm(define, 45); /* it may be there already */
	memcpy(write + 33, text, strnlen(text, 8));
	long code = tpm(write, 43);
	if (code)
		say("ERROR tpm: %lx\n", code);
	else
		say("NV %.8s\n", text);
}

static void read_index(void)
{
	unsigned char read[128] = { HEAD(0x4e), OWNER, INDEX, PASSWORD, 0, 8, 0, 0 };
	if (tpm(read, 35))
		say("NV none\n");
	else
		say("NV %.8s\n", read + 16);
}

static void command(const char *line, long memory)
{
	if (!strcmp(line, "lie") && disks > 0) {
		write_counter(0, memory + 1000);
		say("LIED disk now says %ld\n", memory + 1000);
	} else if (!strncmp(line, "say ", 4)) {
		say("SAID %s\n", line + 4);
	} else if (!strncmp(line, "flood ", 6)) {
		int clusters = atoi(line + 6);
		flood = disks > 0 && clusters > 0 ? clusters % (FLOODED + 1) : 0;
		say("FLOODING %d\n", flood);
	} else if (!strncmp(line, "var ", 4)) {
		write_variable(line + 4);
	} else if (!strcmp(line, "var?")) {
		read_variable();
	} else if (!strncmp(line, "nv ", 3)) {
		write_index(line + 3);
	} else if (!strcmp(line, "nv?")) {
		read_index();
	} else if (!strcmp(line, "off")) {
		power_off();
	} else if (*line) {
		say("UNKNOWN %s\n", line);
	}
}

static void typed(long memory)
{
	static char line[128];
	static size_t used;
	char c;
	while (read(console, &c, 1) == 1) {
		if (c != '\r' && c != '\n') {
			if (used < sizeof line - 1)
				line[used++] = c;
			continue;
		}
		line[used] = 0;
		used = 0;
		command(line, memory);
	}
}

static void pressed(int fd)
{
	struct input_event event;
	while (read(fd, &event, sizeof event) == sizeof event)
		if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
			power_off();
}

static struct timespec later(struct timespec when, long milliseconds)
{
	when.tv_nsec += milliseconds * 1000000;
	when.tv_sec += when.tv_nsec / 1000000000;
	when.tv_nsec %= 1000000000;
	return when;
}

/* Serves console and power button until the monotonic clock reaches `until`. */
static void serve(struct timespec until, long memory)
{
	for (;;) {
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		long left = (until.tv_sec - now.tv_sec) * 1000 + (until.tv_nsec - now.tv_nsec) / 1000000;
		if (left <= 0)
			return;
		struct pollfd fds[1 + BUTTONS] = { { .fd = console, .events = POLLIN } };
		for (int i = 0; i < buttons; i++)
			fds[1 + i] = (struct pollfd){ .fd = button[i], .events = POLLIN };
		int ready = poll(fds, 1 + buttons, flood ? 0 : left);
		if (flood && ready >= 0)
			flood_on();
		else if (ready <= 0)
			return;
		if (fds[0].revents & POLLIN)
			typed(memory);
		for (int i = 0; i < buttons; i++)
			if (fds[1 + i].revents & POLLIN)
				pressed(button[i]);
	}
}

/*
 * The clock may have jumped, as after a revert under TCG that kept the process: QEMU never lets the
 * TSC go back.  Missed periods are not made up for.
 */
static struct timespec period_after(struct timespec last, long period)
{
	struct timespec now, next = later(last, period);
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec > next.tv_sec || (now.tv_sec == next.tv_sec && now.tv_nsec > next.tv_nsec))
		next = later(now, period);
	return next;
}

static void open_all(const char *line, const char *named)
{
	char path[32], input[] = "/dev/input/event0";
	name = strrchr(named, '/') + 1;
	console = open(line, O_RDWR | O_NOCTTY | O_NONBLOCK);
	struct termios raw;
	tcgetattr(console, &raw);
	cfmakeraw(&raw);
	raw.c_oflag = OPOST | ONLCR;
	cfsetspeed(&raw, B115200);
	tcsetattr(console, TCSANOW, &raw);
	fcntl(console, F_SETFL, 0);
	/* Reads return at once with what is there; writes still wait for the line. */
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 0;
	tcsetattr(console, TCSANOW, &raw);
	for (; disks < DISKS; disks++) {
		snprintf(path, sizeof path, "%s%c", named, 'a' + disks);
		if ((disk[disks] = open(path, O_RDWR | O_DIRECT | O_SYNC)) < 0)
			break;
	}
	for (; buttons < BUTTONS; buttons++, input[16]++)
		if ((button[buttons] = open(input, O_RDONLY | O_NONBLOCK)) < 0)
			break;
	if (posix_memalign((void **)&block, BLOCK, BLOCK))
		_exit(1);
}

int main(int count, char **arguments)
{
	long period = count == 4 ? atol(arguments[3]) : 0;
	if (period < 1 || period > 1000 || !strchr(arguments[2], '/'))
		return 2;
	open_all(arguments[1], arguments[2]);
	long memory = disks > 0 ? read_counter(0) : 0;
	say("START %ld disks=%d\n", memory, disks);
	for (int i = 1; i < disks; i++)
		if (read_counter(i) != memory)
			say("START %s%c says %ld\n", name, 'a' + i, read_counter(i));
	for (int i = 0; i < disks; i++)
		write_counter(i, memory);

	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (;;) {
		int good = 1;
		for (int i = 0; i < disks; i++) {
			long found = read_counter(i);
			if (found != memory) {
				say("MISMATCH mem=%ld disk=%ld on %s%c\n", memory, found, name, 'a' + i);
				good = 0;
			}
		}
		if (good)
			say("MATCH %ld\n", memory);
		memory++;
		for (int i = 0; i < disks; i++)
			write_counter(i, memory);
		next = period_after(next, period);
		serve(next, memory);
	}
}
