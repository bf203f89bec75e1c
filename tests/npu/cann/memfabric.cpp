// memfabric's memory between devices, over emulated NPUs of one machine, for tests only: the functions of libmf_smem.so
// that windows need, compiled against its real headers. Each rank's part is a memfd, which all ranks map as addresses
// of their device; descriptors go over a socket in the abstract namespace, so that nothing is left of a process that
// ends.
#include <smem_shm.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <poll.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include "emulated_npu.h"

namespace {

using Time = std::chrono::steady_clock::time_point;

// Windows are further apart than they are long.
constexpr uint64_t gap_bytes = 2 << 20;

std::string last_error;

class Failed : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] void fail(const std::string &what) { throw Failed("emulated memfabric: " + what); }
[[noreturn]] void fail_by_system(const std::string &what) {
    fail(what + ": " + std::generic_category().message(errno));
}

class Descriptor {
  public:
    explicit Descriptor(int number = -1) : number_(number) {}
    Descriptor(Descriptor &&other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor &operator=(Descriptor &&other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Descriptor() {
        if (number_ >= 0)
            close(number_);
    }
    int get() const { return number_; }

  private:
    int number_;
};

// What ranks tell each other; a descriptor goes with it where there is one.
struct Message {
    uint32_t rank;
    uint32_t id;
    uint64_t bytes;
};

void send_message(const Descriptor &socket, Message message, int descriptor) {
    iovec part = {&message, sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof descriptor)] = {};
    msghdr header = {};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (descriptor >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        cmsghdr *first = CMSG_FIRSTHDR(&header);
        first->cmsg_level = SOL_SOCKET;
        first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(sizeof descriptor);
        memcpy(CMSG_DATA(first), &descriptor, sizeof descriptor);
    }
    if (sendmsg(socket.get(), &header, MSG_NOSIGNAL) < 0)
        fail_by_system("a message to another rank");
}

int milliseconds_until(Time end) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    return static_cast<int>(std::max<int64_t>(0, left.count()));
}

void await(const Descriptor &socket, Time end, const std::string &what) {
    pollfd entry = {socket.get(), POLLIN, 0};
    int ready = 0;
    while ((ready = poll(&entry, 1, milliseconds_until(end))) < 0 && errno == EINTR) {
    }
    if (ready <= 0)
        fail("nothing came from " + what);
}

Message receive_message(const Descriptor &socket, Time end, const std::string &from, Descriptor &descriptor) {
    await(socket, end, from);
    Message message = {};
    iovec part = {&message, sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr header = {};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    if (recvmsg(socket.get(), &header, MSG_CMSG_CLOEXEC) != sizeof message)
        fail(from + " has ended");
    if (const cmsghdr *first = CMSG_FIRSTHDR(&header); first != nullptr) {
        int number;
        memcpy(&number, CMSG_DATA(first), sizeof number);
        descriptor = Descriptor(number);
    }
    return message;
}

std::string rank_text(uint32_t rank) { return "rank " + std::to_string(rank); }

// The ranks that met at one URL: rank 0 has a socket to each, the others one to rank 0.
class Ranks {
  public:
    Ranks(const std::string &url, uint32_t ranks, uint32_t rank, const smem_shm_config_t &config)
        : ranks_(ranks), rank_(rank), patience_(config.shmCreateTimeout), sockets_(ranks) {
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        const std::string name = "emulated-memfabric:" + url; // behind a zero byte: in the abstract namespace
        if (name.size() + 1 > sizeof address.sun_path)
            fail("the URL is too long: " + url);
        memcpy(address.sun_path + 1, name.data(), name.size());
        const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
        const Time end = std::chrono::steady_clock::now() + std::chrono::seconds(config.shmInitTimeout);
        if (rank == 0)
            accept_all(reinterpret_cast<sockaddr *>(&address), length, end);
        else
            connect_to_first(reinterpret_cast<sockaddr *>(&address), length, end);
    }

    uint32_t ranks() const { return ranks_; }
    uint32_t rank() const { return rank_; }

    // Every rank's descriptor and what it said, [ranks]. A rank that has none says so with an empty one.
    std::vector<Descriptor> share(Message mine, const Descriptor &own) {
        const Time end = std::chrono::steady_clock::now() + std::chrono::seconds(patience_);
        std::vector<Descriptor> all(ranks_);
        std::vector<Message> said(ranks_, mine);
        if (rank_ == 0) {
            for (uint32_t rank = 1; rank < ranks_; ++rank)
                said[rank] = receive_message(sockets_[rank], end, rank_text(rank), all[rank]);
            for (uint32_t to = 1; to < ranks_; ++to)
                for (uint32_t rank = 0; rank < ranks_; ++rank)
                    send_message(sockets_[to], said[rank], rank == 0 ? own.get() : all[rank].get());
        } else {
            send_message(sockets_[0], mine, own.get());
            for (uint32_t rank = 0; rank < ranks_; ++rank)
                said[rank] = receive_message(sockets_[0], end, rank_text(0), all[rank]);
        }
        all[rank_] = Descriptor(fcntl_duplicate(own.get()));
        for (uint32_t rank = 0; rank < ranks_; ++rank)
            if (all[rank].get() < 0)
                fail(rank_text(rank) + " has no memory for its part");
            else if (said[rank].id != mine.id || said[rank].bytes != mine.bytes)
                fail(rank_text(rank) + " asks for " + std::to_string(said[rank].bytes) + " bytes of memory " +
                     std::to_string(said[rank].id));
        return all;
    }

  private:
    static int fcntl_duplicate(int number) { return number < 0 ? -1 : dup(number); }

    void accept_all(const sockaddr *address, socklen_t length, Time end) {
        const Descriptor listening(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        if (bind(listening.get(), address, length) != 0 || listen(listening.get(), static_cast<int>(ranks_)) != 0)
            fail_by_system("the place where ranks meet");
        for (uint32_t come = 1; come < ranks_; ++come) {
            await(listening, end, "a rank that is to come");
            Descriptor accepted(accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC)), none;
            const uint32_t rank = receive_message(accepted, end, "a rank that has come", none).rank;
            if (rank >= ranks_)
                fail(rank_text(rank) + " does not exist");
            sockets_[rank] = std::move(accepted);
        }
    }
    void connect_to_first(const sockaddr *address, socklen_t length, Time end) {
        for (;;) {
            Descriptor made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
            if (connect(made.get(), address, length) == 0) {
                sockets_[0] = std::move(made);
                break;
            }
            if (milliseconds_until(end) == 0)
                fail_by_system("rank 0 cannot be reached");
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        send_message(sockets_[0], {rank_, 0, 0}, -1);
    }

    const uint32_t ranks_;
    const uint32_t rank_;
    const uint32_t patience_;
    std::vector<Descriptor> sockets_;
};

// Addresses of the host, taken and given back.
class Addresses {
  public:
    explicit Addresses(size_t bytes)
        : bytes_(bytes), begin_(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
        if (begin_ == MAP_FAILED)
            fail_by_system("addresses");
    }
    ~Addresses() { munmap(begin_, bytes_); }
    Addresses(const Addresses &) = delete;
    Addresses &operator=(const Addresses &) = delete;

    char *at(size_t offset) const { return static_cast<char *>(begin_) + offset; }

  private:
    const size_t bytes_;
    void *begin_;
};

// Memory of the own die that a part takes, so that it counts as used.
class Taken {
  public:
    explicit Taken(size_t bytes) : address_(emulated_npu_allocate(bytes)) {}
    ~Taken() {
        if (address_ != nullptr)
            emulated_npu_free(address_);
    }
    Taken(const Taken &) = delete;
    Taken &operator=(const Taken &) = delete;
    bool is_there() const { return address_ != nullptr; }

  private:
    void *address_;
};

class Memory {
  public:
    Memory(Ranks &ranks, uint32_t id, uint64_t bytes)
        : ranks_(ranks.ranks()), distance_(bytes + gap_bytes), taken_(bytes), device_(ranks_ * distance_),
          shadow_(ranks_ * distance_) {
        Descriptor own;
        if (taken_.is_there())
            own = Descriptor(memfd_create("emulated-memfabric", MFD_CLOEXEC));
        if (own.get() >= 0 && ftruncate(own.get(), static_cast<off_t>(bytes)) != 0)
            fail_by_system("the own part");
        const std::vector<Descriptor> parts = ranks.share({ranks.rank(), id, bytes}, own);
        for (uint32_t rank = 0; rank < ranks_; ++rank) {
            void *mapped = mmap(shadow_.at(rank * distance_), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                parts[rank].get(), 0);
            if (mapped == MAP_FAILED)
                fail_by_system("the part of " + rank_text(rank));
        }
        for (uint32_t rank = 0; rank < ranks_; ++rank)
            emulated_npu_add_range(device_.at(rank * distance_), bytes, shadow_.at(rank * distance_));
    }
    ~Memory() {
        for (uint32_t rank = 0; rank < ranks_; ++rank)
            emulated_npu_remove_range(device_.at(rank * distance_));
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    uint32_t ranks() const { return ranks_; }
    uint64_t distance() const { return distance_; }
    void *base() const { return device_.at(0); }

  private:
    const uint32_t ranks_;
    const uint64_t distance_;
    const Taken taken_;
    const Addresses device_;
    const Addresses shadow_;
};

std::unique_ptr<Ranks> met;
std::map<uint32_t, std::unique_ptr<Memory>> memories;

template <class Call> int32_t guarded(Call call) {
    try {
        call();
        return SMEM_OK;
    } catch (const Failed &error) {
        last_error = error.what();
        return SMEM_ERROR;
    }
}

} // namespace

int32_t smem_init(uint32_t) { return SMEM_OK; }

const char *smem_get_last_err_msg(void) { return last_error.c_str(); }

int32_t smem_shm_config_init(smem_shm_config_t *config) {
    *config = {120, 120, 120, true, 0};
    return SMEM_OK;
}

int32_t smem_shm_init(const char *url, uint32_t ranks, uint32_t rank, uint16_t, smem_shm_config_t *config) {
    return guarded([=] { met = std::make_unique<Ranks>(url, ranks, rank, *config); });
}

void smem_shm_uninit(uint32_t) {
    memories.clear();
    met.reset();
}

smem_shm_t smem_shm_create(uint32_t id, uint32_t ranks, uint32_t rank, uint64_t bytes, smem_shm_data_op_type kind,
                           uint32_t, void **base) {
    Memory *made = nullptr;
    guarded([&] {
        if (met == nullptr || met->ranks() != ranks || met->rank() != rank || kind != SMEMS_DATA_OP_MTE)
            fail("memory for ranks that have not met, or that cores do not reach");
        made = (memories[id] = std::make_unique<Memory>(*met, id, bytes)).get();
        *base = made->base();
    });
    return made;
}

uint64_t smem_shm_get_symmetric_size(smem_shm_t handle) { return static_cast<Memory *>(handle)->distance(); }

int32_t smem_shm_topology_can_reach(smem_shm_t handle, uint32_t rank, uint32_t *reach) {
    if (rank >= static_cast<Memory *>(handle)->ranks())
        return SMEM_INVALID_PARAM;
    *reach = SMEMS_DATA_OP_MTE | SMEMS_DATA_OP_SDMA;
    return SMEM_OK;
}

int32_t smem_shm_destroy(smem_shm_t handle, uint32_t) {
    return std::erase_if(memories, [=](const auto &entry) { return entry.second.get() == handle; }) == 1
               ? SMEM_OK
               : SMEM_INVALID_PARAM;
}
