// One signal handler for the time of one call; a handler can only reach what has static storage.
#include "bindings/interrupt.h"

#include <atomic>
#include <csignal>

#include <pthread.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace
{

std::atomic<volatile int32_t *> flag{nullptr};
std::atomic<bool> arrived{false};
struct sigaction before;

bool on_main_thread()
{
#ifdef __linux__
    return syscall(SYS_gettid) == getpid();
#else
    return pthread_main_np() != 0;
#endif
}

void on_interrupt(int number, siginfo_t *info, void *context)
{
    arrived = true;
    if (volatile int32_t *cancel = flag) *cancel = 1;
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
    else before.sa_handler(number);
}

} // namespace

Interruptible::Interruptible(volatile int32_t *cancel)
{
    if (!on_main_thread() || sigaction(SIGINT, nullptr, &before) != 0) return;
    if (!(before.sa_flags & SA_SIGINFO) && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) return;

    struct sigaction ours = {};
    ours.sa_sigaction = on_interrupt;
    ours.sa_flags = SA_SIGINFO | (before.sa_flags & (SA_ONSTACK | SA_RESTART));
    sigemptyset(&ours.sa_mask);
    arrived = false;
    flag = cancel;
    installed_ = sigaction(SIGINT, &ours, nullptr) == 0;
}

Interruptible::~Interruptible()
{
    if (!installed_) return; // what is there belongs to a call on the main thread
    sigaction(SIGINT, &before, nullptr);
    flag = nullptr;
}

bool Interruptible::fired() const
{
    return installed_ && arrived;
}
