// fibers: runs a grid on one thread of the CPU, each CUDA thread a fiber. The lower half of emulate.h.
//
// A fiber runs until it waits: for its warp, for its block, or in relax(). A block runs at a time; the blocks of a
// cooperative launch are alive together. What cannot go on is reported with kernel, block, warp and lane, and ends the
// launch: lanes of a warp at different operations, lanes that have ended, a block barrier that not all threads reach.
#pragma once

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <utility>
#include <vector>

#if defined(__x86_64__) && !defined(CUTE_UCONTEXT)
#define EMU_ASM 1
#else
#include <ucontext.h>
#endif

// One launch at a time in a process: the host holds a lock, so that no variable needs to be a thread's own.

namespace emu {

struct Dim {
    uint32_t x, y, z;
};

enum Join : uint32_t { PLAIN, OVERLAPPED, COOPERATIVE };
enum Cause : uint32_t { READ, WRITE, TRAP, DIVIDED, NOWHERE };

// What the host lends to a launch; emulated.rs has the same struct.
struct Host {
    char* stacks;          // zeroed, one behind another
    uint64_t stack_bytes;  // of each
    char* smem_end;        // where the shared memory of block 0 ends, at an inaccessible page
    uint64_t smem_stride;  // to the next block's
    uint64_t seed;         // of the order in which threads run; 0: ascending
    void (*fault)(Host*, uint64_t address, uint32_t cause); // to be called on a signal; leaves the thread that runs
    char error[512];
};

// Grid, block and shared memory of a launch; emulated.rs has the same struct.
struct Shape {
    uint32_t grid[3], block, smem, join;
};

// Where a thread waits: the name of the operation and the line it is called in.
struct At {
    const char* op;
    const char* file;
    int line;
    bool operator!=(const At& b) const { return op != b.op || line != b.line; }
};
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct Context {
#ifdef EMU_ASM
    void* sp;
#else
    ucontext_t registers;
#endif
};

// 16 bytes on their way to shared memory.
struct Copy {
    void* to;
    const void* from;
    uint32_t group;
};

// A bulk copy on its way to shared memory, and the barrier that waits for it.
struct Bulk {
    void* to;
    const void* from;
    uint32_t bytes;
    const void* barrier;
};

enum State : uint8_t { READY, AT_WARP, AT_BLOCK, ENDED };

struct Warp;
struct Block;

struct Fiber {
    Context context;
    Fiber* next; // in the list of those that can run
    Warp* warp;
    Block* block;
    Dim thread;
    State state;
    At at;
    std::vector<Copy> copies; // oldest first
    uint32_t groups;          // committed so far
};

struct Warp {
    Fiber* lanes;
    uint32_t arrived;
    uint32_t phase; // which half of `value` the coming operation uses: a lane can be one operation ahead, not two
    At at;
    uint64_t value[2][32];
};

struct Block {
    Dim index;
    Fiber* threads;
    char* smem;
    uint32_t arrived;
    bool waited; // a thread has called wait_for_previous
    At at;
    std::vector<Bulk> bulk; // oldest first
};

struct Launch {
    Host* host;
    const char* kernel;
    Dim grid, block;
    uint32_t smem, join;
    void (*call)(void**);
    void** args;
    Context main;
    Block* blocks; // those alive
    uint32_t alive;
    Fiber *head, *tail; // those that can run
    uint64_t ended, idle, random;
    bool failed;
};

static Launch* launch;
static Fiber* self;

#ifdef EMU_ASM
// Keeps the registers a call must keep and the stack pointer, and goes on where `to` stopped.
extern "C" void emu_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
.size emu_switch,.-emu_switch
)");
static inline void switch_context(Context& from, Context& to) { emu_switch(&from.sp, to.sp); }
static inline void prepare(Context& context, char* stack, uint64_t bytes, void (*entry)()) {
    void** top = (void**)(((uintptr_t)stack + bytes) & ~(uintptr_t)15);
    memset(top - 8, 0, 64);
    top[-2] = (void*)entry; // the slot above it stands for a return address
    context.sp = top - 8;
}
#else
static inline void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
static inline void prepare(Context& context, char* stack, uint64_t bytes, void (*entry)()) {
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = stack;
    context.registers.uc_stack.ss_size = bytes;
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, entry, 0);
}
#endif

// The next of a random sequence; 0 when the order is ascending.
static inline uint64_t roll() {
    uint64_t& r = launch->random;
    r ^= r << 13, r ^= r >> 7, r ^= r << 17;
    return r;
}

static inline void push_front(Fiber* f) {
    f->state = READY;
    if (!launch->head) launch->tail = f;
    f->next = launch->head;
    launch->head = f;
}

static inline void push_back(Fiber* f) {
    f->state = READY;
    f->next = nullptr;
    (launch->head ? launch->tail->next : launch->head) = f;
    launch->tail = f;
}

static inline Fiber* pop() {
    Fiber* f = launch->head;
    if (f) launch->head = f->next;
    return f;
}

// Gives way to the next thread that can run, or to the host when there is none.
__attribute__((noinline)) static void sleep() {
    Fiber* me = self;
    self = pop();
    if (self != me) switch_context(me->context, self ? self->context : launch->main);
}

// Ends the launch with a message and does not return. `where` is the place in the grid.
__attribute__((noinline, format(printf, 2, 3))) static void fail(const Block* block, const char* format, ...) {
    Launch* l = launch;
    size_t size = sizeof l->host->error;
    const Dim& b = block->index;
    int used = snprintf(l->host->error, size, "kernel `%s`, block (%u, %u, %u), ", l->kernel, b.x, b.y, b.z);
    va_list args;
    va_start(args, format);
    if (used > 0 && (size_t)used < size) vsnprintf(l->host->error + used, size - used, format, args);
    va_end(args);
    l->failed = true;
    l->head = nullptr;
    if (Fiber* me = self) {
        self = nullptr;
        switch_context(me->context, l->main);
    }
}
#define EMU_FAIL(format, ...) emu::fail(emu::self->block, "thread %u: " format, emu::self->thread.x, ##__VA_ARGS__)

static void fault(Host*, uint64_t address, uint32_t cause) {
    if (!self) return;
    if (cause == NOWHERE) EMU_FAIL("reads or writes what cannot be an address (a pointer from unwritten memory?)");
    if (cause == TRAP) EMU_FAIL("an address is not a multiple of the size of what lies there, or something undefined");
    if (cause == DIVIDED) EMU_FAIL("an integer is divided by zero");
    EMU_FAIL("%s address %#llx", cause == WRITE ? "writes" : "reads", (unsigned long long)address);
}

static inline void wake_warp(Warp* w, const Fiber* except) {
    uint64_t r = roll();
    for (uint32_t i = 32; i-- > 0;) {
        Fiber* f = &w->lanes[(i + (r >> 8)) & 31];
        if (f == except) continue;
        r & 1 ? push_back(f) : push_front(f);
    }
    launch->idle = 0;
}

// Waits until all lanes of the warp are at `at`; the last one to come does `all` for the warp. Returns what each lane
// brought: `[32]`, by lane.
template <class F> static inline const uint64_t* join_warp(uint64_t mine, At at, F all) {
    Fiber* me = self;
    Warp* w = me->warp;
    const uint32_t lane = me->thread.x & 31;
    uint64_t* values = w->value[w->phase];
    values[lane] = mine;
    if (w->arrived == 0) {
        w->at = at;
    } else if (w->at != at) {
        uint32_t other = 0;
        while (w->lanes[other].state != AT_WARP) other++;
        fail(me->block, "warp %u: lane %u is at %s (%s:%d), lane %u at %s (%s:%d)", me->thread.x / 32, lane, at.op, at.file,
             at.line, other, w->at.op, w->at.file, w->at.line);
    }
    if (++w->arrived < 32) {
        me->at = at;
        me->state = AT_WARP;
        sleep();
        return values;
    }
    w->arrived = 0;
    w->phase ^= 1;
    all(values);
    wake_warp(w, me);
    return values;
}

static inline void join_block(At at) {
    Fiber* me = self;
    Block* b = me->block;
    const uint32_t threads = launch->block.x;
    if (b->arrived == 0) {
        b->at = at;
    } else if (b->at != at) {
        fail(b, "warp %u: lane %u is at %s (%s:%d), another thread at %s (%s:%d)", me->thread.x / 32, me->thread.x & 31, at.op,
             at.file, at.line, b->at.op, b->at.file, b->at.line);
    }
    me->at = at;
    me->state = AT_BLOCK;
    if (++b->arrived == threads) {
        b->arrived = 0;
        const uint32_t warps = threads / 32, first = roll() % warps;
        for (uint32_t i = warps; i-- > 0;) wake_warp(b->threads[(i + first) % warps * 32].warp, nullptr);
    }
    sleep();
}

static void entry() {
    launch->call(launch->args);
    self->state = ENDED;
    launch->ended++;
    launch->idle = 0;
    sleep();
}

// Says who waits for whom, if somebody waits for what cannot come any more.
static void report_stuck(const Block* block) {
    const uint32_t threads = launch->block.x;
    for (uint32_t t = 0; t < threads; t++) {
        const Fiber &f = block->threads[t], *missing = nullptr;
        if (f.state != AT_WARP && f.state != AT_BLOCK) continue;
        const uint32_t first = f.state == AT_WARP ? t & ~31u : 0, count = f.state == AT_WARP ? 32 : threads;
        for (uint32_t o = first; o < first + count && !missing; o++)
            if (block->threads[o].state != f.state) missing = &block->threads[o];
        // Of a block that waits for a warp that waits itself, the warp's story is the better one.
        if (!missing || missing->state == READY || (f.state == AT_BLOCK && missing->state == AT_WARP)) continue;
        const uint32_t m = missing->thread.x;
        if (missing->state == ENDED)
            return fail(block, "warp %u: lane %u waits at %s (%s:%d), but lane %u of warp %u has ended", t / 32, t & 31, f.at.op,
                        f.at.file, f.at.line, m & 31, m / 32);
        return fail(block, "warp %u: lane %u waits at %s (%s:%d), but lane %u at %s (%s:%d)", t / 32, t & 31, f.at.op, f.at.file,
                    f.at.line, m & 31, missing->at.op, missing->at.file, missing->at.line);
    }
}

// Lets all others go first. Only loops that wait for another thread come here: when nobody gets on, the launch ends.
static inline void give_way() {
    if (++launch->idle > 1000000) {
        for (uint32_t i = 0; i < launch->alive; i++) report_stuck(&launch->blocks[i]);
        EMU_FAIL("waits for what no other thread does");
    }
    push_back(self);
    sleep();
}

// The indices 0..count, shuffled when there is a seed.
static inline std::vector<uint32_t> order_of(uint32_t count) {
    std::vector<uint32_t> order(count);
    for (uint32_t i = 0; i < count; i++) order[i] = i;
    if (launch->random)
        for (uint32_t i = count; i > 1; i--) std::swap(order[i - 1], order[roll() % i]);
    return order;
}

// Runs a launch; 0, or 1 with a message in `host->error`.
static int run(Host* host, const Shape* shape, const char* kernel, void (*call)(void**), void** args) {
    Launch l = {};
    l.host = host, l.kernel = kernel, l.call = call, l.args = args;
    l.grid = {shape->grid[0], shape->grid[1], shape->grid[2]}, l.block = {shape->block, 1, 1};
    l.smem = shape->smem, l.join = shape->join;
    l.random = host->seed * 0x9e3779b97f4a7c15u;
    launch = &l;
    host->fault = fault;
    const uint32_t threads = shape->block, warps = threads / 32, total = l.grid.x * l.grid.y * l.grid.z;
    const uint32_t alive = shape->join == COOPERATIVE ? total : 1;
    std::vector<Fiber> fibers((size_t)alive * threads);
    std::vector<Warp> warp((size_t)alive * warps);
    std::vector<Block> blocks(alive);
    l.blocks = blocks.data(), l.alive = alive;
    const std::vector<uint32_t> order = order_of(total);
    for (uint32_t first = 0; first < total && !l.failed; first += alive) {
        l.ended = l.idle = 0;
        for (uint32_t i = 0; i < alive; i++) {
            const uint32_t at = order[first + i];
            Block& b = blocks[i];
            b = {};
            b.index = {at % l.grid.x, at / l.grid.x % l.grid.y, at / l.grid.x / l.grid.y};
            b.threads = &fibers[(size_t)i * threads];
            b.smem = host->smem_end + i * host->smem_stride - ((l.smem + 15u) & ~15u);
            memset(b.smem, 0xff, (l.smem + 15u) & ~15u);
            for (uint32_t w : order_of(warps)) {
                Warp& mine = warp[i * warps + w];
                mine.lanes = b.threads + w * 32, mine.arrived = mine.phase = 0;
                for (uint32_t lane = 0; lane < 32; lane++) {
                    const size_t n = (size_t)i * threads + w * 32 + lane;
                    Fiber& f = fibers[n];
                    f.warp = &mine, f.block = &b, f.thread = {w * 32 + lane, 0, 0};
                    f.copies.clear(), f.groups = 0;
                    prepare(f.context, host->stacks + n * host->stack_bytes, host->stack_bytes, entry);
                    push_back(&f);
                }
            }
        }
        self = pop();
        switch_context(l.main, self->context); // back when nobody can run
        self = nullptr;
        for (Block& b : blocks) {
            if (!l.failed && l.ended < (uint64_t)alive * threads) report_stuck(&b);
            if (!l.failed && !b.bulk.empty()) fail(&b, "ends while a bulk copy to its shared memory is on its way");
            if (!l.failed && l.join == OVERLAPPED && !b.waited) fail(&b, "launched as overlapped, never calls wait_for_previous");
        }
    }
    for (size_t i = 0; i < fibers.size() && !l.failed; i++) {
        static const char untouched[64] = {};
        if (memcmp(host->stacks + i * host->stack_bytes, untouched, 64))
            fail(fibers[i].block, "thread %u: its local variables need more than %llu bytes", fibers[i].thread.x,
                 (unsigned long long)host->stack_bytes);
    }
    launch = nullptr;
    return l.failed;
}

// A kernel's arguments: their kinds, and a call that takes them from an array of pointers.
template <class T> constexpr char kind_of() {
    static_assert(std::is_pointer<T>::value || ((sizeof(T) == 4 || sizeof(T) == 8) && std::is_arithmetic<T>::value),
                  "a kernel takes pointers, 4- and 8-byte integers and floats");
    return std::is_pointer<T>::value ? 'p' : std::is_floating_point<T>::value ? (sizeof(T) == 4 ? 'f' : 'd') : sizeof(T) == 4 ? 'u' : 'U';
}
template <auto F> struct Entry;
template <class... A, void (*F)(A...)> struct Entry<F> {
    static constexpr char kinds[] = {kind_of<A>()..., 0};
    template <size_t... I> static void call(void** args, std::index_sequence<I...>) { F(*(A*)args[I]...); }
    static void call(void** args) { call(args, std::index_sequence_for<A...>()); }
};

} // namespace emu
