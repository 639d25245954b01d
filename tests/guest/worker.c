/*
 * The whole user space of the test guest: one process that notices when memory and disk stop
 * belonging to the same moment.
 *
 * Once a second it reads its record back from every virtio disk, past the page cache, and compares
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
 *   off     power off
 *
 * The ACPI power button powers off as well, so that virsh shutdown works.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, OFFSET = 1 << 20, DISKS = 4, BUTTONS = 4 };
static const char MAGIC[] = "virtsnap counter ";

static int console;
static int disk[DISKS];
static int disks;
static int button[BUTTONS];
static int buttons;
static char *block;

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
		say("ERROR read vd%c: %s\n", 'a' + i, strerror(errno));
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
		say("ERROR write vd%c: %s\n", 'a' + i, strerror(errno));
}

static void power_off(void)
{
	say("POWEROFF\n");
	tcdrain(console);
	sync();
	reboot(RB_POWER_OFF);
}

static void command(const char *line, long memory)
{
	if (!strcmp(line, "lie") && disks > 0) {
		write_counter(0, memory + 1000);
		say("LIED disk now says %ld\n", memory + 1000);
	} else if (!strncmp(line, "say ", 4)) {
		say("SAID %s\n", line + 4);
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
		if (poll(fds, 1 + buttons, left) <= 0)
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
 * TSC go back.  Missed seconds are not made up for.
 */
static struct timespec second_after(struct timespec last)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	last.tv_sec++;
	if (now.tv_sec > last.tv_sec) {
		last = now;
		last.tv_sec++;
	}
	return last;
}

static void open_all(void)
{
	char path[] = "/dev/vda", input[] = "/dev/input/event0";
	console = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_NONBLOCK);
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
	for (; disks < DISKS; disks++, path[7]++)
		if ((disk[disks] = open(path, O_RDWR | O_DIRECT | O_SYNC)) < 0)
			break;
	for (; buttons < BUTTONS; buttons++, input[16]++)
		if ((button[buttons] = open(input, O_RDONLY | O_NONBLOCK)) < 0)
			break;
	if (posix_memalign((void **)&block, BLOCK, BLOCK))
		_exit(1);
}

int main(void)
{
	open_all();
	long memory = disks > 0 ? read_counter(0) : 0;
	say("START %ld disks=%d\n", memory, disks);
	for (int i = 1; i < disks; i++)
		if (read_counter(i) != memory)
			say("START vd%c says %ld\n", 'a' + i, read_counter(i));
	for (int i = 0; i < disks; i++)
		write_counter(i, memory);

	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (;;) {
		int good = 1;
		for (int i = 0; i < disks; i++) {
			long found = read_counter(i);
			if (found != memory) {
				say("MISMATCH mem=%ld disk=%ld on vd%c\n", memory, found, 'a' + i);
				good = 0;
			}
		}
		if (good)
			say("MATCH %ld\n", memory);
		memory++;
		for (int i = 0; i < disks; i++)
			write_counter(i, memory);
		next = second_after(next);
		serve(next, memory);
	}
}
