// SPDX-License-Identifier: Apache-2.0
/*
 * Process 1 of the guest: from the kernel's read-only root to a command in a throwaway copy of the host.
 *
 *	init OVERLAY_KO LIB_MODULES {pipe|tty}
 *
 * The root that the kernel mounted (the host's /, over virtiofs) becomes the lower layer of an overlay
 * whose upper layer is memory; two folders of the host are mounted writable: the share, and what the guest
 * has compiled, which outlives it. Then /run/guest/start, from the share, runs with its output on the port
 * "output" or on a terminal; the port "status" gets "up" before it starts and "exit N" when it is done.
 * An init that fails makes the kernel panic, and a panic leaves no status.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define NEW_ROOT "/run/root"
#define OVERLAY "lowerdir=/,upperdir=/run/upper,workdir=/run/work"
#define STATUS_PORT "/dev/vport0p1"
#define OUTPUT_PORT "/dev/vport0p2"
#define PORT_PATIENCE_MS 10000
#define SHARE "/run/guest"
#define PROGRAMS "/var/cache/nfcore/programs"

struct filesystem {
	const char *type;
	const char *target;
	const char *options;
};

/* Parents first. /tmp stays the overlay's: a checkout may live there. */
static const struct filesystem filesystems[] = {
	{"proc", "proc", NULL},
	{"sysfs", "sys", NULL},
	{"bpf", "sys/fs/bpf", "mode=0700"},
	{"cgroup2", "sys/fs/cgroup", NULL},
	{"debugfs", "sys/kernel/debug", NULL},
	{"tracefs", "sys/kernel/tracing", NULL},
	{"devtmpfs", "dev", NULL},
	{"tmpfs", "dev/shm", "mode=1777"},
	{"devpts", "dev/pts", "mode=620,ptmxmode=666"},
	{"tmpfs", "run", "mode=755"},
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	char text[512];
	int code = errno;
	va_list arguments;
	int kmsg;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	mknod("/dev/kmsg", S_IFCHR | 0600, 1 << 8 | 11);
	kmsg = open("/dev/kmsg", O_WRONLY);
	dprintf(kmsg, "<2>guest init: %s: %s\n", text, strerror(code));
	_exit(1);
}

static void mount_or_die(const char *source, const char *target, const char *type, const char *options)
{
	if (mount(source, target, type, 0, options))
		die("mount %s at %s", type, target);
}

static void make_directory(const char *path)
{
	if (mkdir(path, 0755) && errno != EEXIST)
		die("mkdir %s", path);
}

static void load_module(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0 || syscall(SYS_finit_module, file, "", 0))
		die("load %s", path);
	close(file);
}

static void mount_filesystems(void)
{
	for (size_t i = 0; i < sizeof(filesystems) / sizeof(filesystems[0]); i++) {
		const struct filesystem *fs = &filesystems[i];

		/* A host without them has no use for them, but for the folders that sysfs itself brings. */
		if (strchr(fs->target, '/') && strncmp(fs->target, "sys/", 4))
			mkdir(fs->target, 0755);
		mount_or_die(fs->type, fs->target, fs->type, fs->options);
	}
}

static void change_root(void)
{
	make_directory("/run/upper");
	make_directory("/run/work");
	make_directory(NEW_ROOT);
	mount_or_die("overlay", NEW_ROOT, "overlay", OVERLAY);
	if (chdir(NEW_ROOT))
		die("chdir %s", NEW_ROOT);
	mount_filesystems();
	/* Not chroot: the kernel starts modprobe in the root of process 1's mount namespace. */
	if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		die("pivot_root");
}

static void link_modules(const char *folder)
{
	struct utsname kernel;
	char path[512];

	uname(&kernel);
	mkdir("/lib/modules", 0755);
	snprintf(path, sizeof(path), "/lib/modules/%s", kernel.release);
	if (symlink(folder, path) && errno != EEXIST)
		die("symlink %s", path);
}

static void bring_up_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int file = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (file < 0 || ioctl(file, SIOCSIFFLAGS, &request))
		die("bring up lo");
	close(file);
}

/* Ports appear a moment after their bus. */
static int open_port(const char *path, int flags)
{
	const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
	int file;

	for (int waited = 0; waited < PORT_PATIENCE_MS; waited += 5) {
		file = open(path, flags);
		if (file >= 0)
			return file;
		nanosleep(&pause, NULL);
	}
	die("open %s", path);
}

static void take_standard_streams(int input, int output)
{
	if (dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
		die("dup2");
	if (input > 2)
		close(input);
	if (output > 2)
		close(output);
}

static void start(int tty)
{
	setsid();
	if (tty) {
		/* Opened without O_NOCTTY by the leader of a session: its controlling terminal. */
		int terminal = open_port("/dev/hvc0", O_RDWR);

		take_standard_streams(terminal, terminal);
	} else {
		take_standard_streams(open("/dev/null", O_RDONLY), open_port(OUTPUT_PORT, O_WRONLY));
	}
	execl("/bin/sh", "sh", SHARE "/start", (char *)NULL);
	die("run /bin/sh");
}

/* Reaps whatever becomes ours until the command is done; its status as a shell would give it. */
static int wait_for(pid_t command)
{
	int status;
	pid_t pid;

	do
		pid = wait(&status);
	while (pid != command);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	pid_t command;
	int status_port, tty;

	if (argc != 4)
		die("%d arguments", argc - 1);
	tty = !strcmp(argv[3], "tty");
	mount_or_die("tmpfs", "/run", "tmpfs", "mode=755");
	load_module(argv[1]);
	change_root();
	make_directory(SHARE);
	mount_or_die("share", SHARE, "virtiofs", NULL);
	make_directory("/var/cache/nfcore");
	make_directory(PROGRAMS);
	mount_or_die("programs", PROGRAMS, "virtiofs", NULL);
	link_modules(argv[2]);
	bring_up_loopback();
	sethostname("guest", 5);
	status_port = open_port(STATUS_PORT, O_WRONLY | O_CLOEXEC);
	dprintf(status_port, "up\n");
	command = fork();
	if (command < 0)
		die("fork");
	if (!command)
		start(tty);
	dprintf(status_port, "exit %d\n", wait_for(command));
	sync();
	reboot(RB_AUTOBOOT);
	die("reboot");
}
