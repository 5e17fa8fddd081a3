#include "runtime/transport/parameter_server.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

// How soon a cancelled call is noticed. A contribution holds bytes that others may wait for; a follower that is gone
// holds only its thread, and what is new or the end of this node wakes it.
constexpr absl::Duration kPoll = absl::Milliseconds(200);
constexpr absl::Duration kFollowPoll = absl::Seconds(1);
// The parts of a follower that is gone are woken by its end.
constexpr absl::Duration kPartPoll = absl::Seconds(10);
// How long calls that belong together may come after one another.
constexpr absl::Duration kPartsWait = absl::Seconds(5);
// How long what a child was being brought to, and what it had sent of a contribution, is kept when its stream breaks.
constexpr absl::Duration kComesBack = absl::Minutes(1);
// Of each child's accepted contributions, so many are known by their numbers.
constexpr size_t kAcceptedKept = 64;
constexpr uint64_t kLastTransfer = std::numeric_limits<uint64_t>::max();
constexpr int kStreamsMax = 64;
constexpr int kWholeFragmentsMax = 32768;         // That a sender is told of: metadata has room for 4 KiB.
constexpr int kRangesMax = 100000;                // Of one contribution.
constexpr int64_t kSampleMax = int64_t{1} << 44;  // No data has so many, and kRangesMax times it is a number.
// Group commit: while more work waits, so many effects may wait with it for one sync.
constexpr size_t kOutboxMax = 64;

}  // namespace

// One contribution, from its first byte to its verdict.
struct ParameterServer::Offer {
  ContributionHeader header;
  std::shared_ptr<const EncodedVector> payload;
  absl::StatusOr<double> norm;
  StagingRoom::Share room;
  Notification answered;
  Verdict verdict = VERDICT_UNSPECIFIED;  // Both written before `answered`.
  std::string detail;
  bool broken_off = false;  // The call is over, and what it brought is kept. The call's.
};

// One contribution while its bytes come.
struct ParameterServer::Incoming {
  Incoming(std::shared_ptr<Offer> of, const ContributionHeader& header, absl::Span<const FragmentSpan> fragments,
           bool partial)
      : offer(std::move(of)), assembly(header.codec(), fragments, partial, header.payload_bytes(), header.streams()) {}
  const std::shared_ptr<Offer> offer;
  ContributionAssembly assembly;
  std::optional<absl::Time> kept_until;  // Under mutex_. Empty: its call goes on.
};

// One Follow with its parts.
struct ParameterServer::Following {
  PublicParameters::Cursor cursor;
  FollowSpread spread;
};

// While a call brings what a child contributes: its fence ends it.
class ParameterServer::Reading {
 public:
  Reading(ParameterServer* server, MemberKey child, grpc::ServerContext* context) : server_(server) {
    MutexLock lock(server->mutex_);
    here_ = server->reading_.emplace(child, context);
  }
  ~Reading() {
    MutexLock lock(server_->mutex_);
    server_->reading_.erase(here_);
  }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

 private:
  ParameterServer* const server_;
  std::multimap<MemberKey, grpc::ServerContext*>::iterator here_;
};

ParameterServer::ParameterServer(const Options& options, Hooks hooks, absl::Span<float> theta,
                                 const VersionNotes& notes, ParentLink* up, const Clock* clock,
                                 const Restored* restored)
    : options_(options),
      up_(up),
      engine_(options, std::move(hooks), theta, notes, up, clock, restored),
      executor_("node") {
  public_.OnTaken([this] { Post(ParentNode::FollowersReady{}); });
}

ParameterServer::~ParameterServer() { Shutdown(); }

void ParameterServer::Shutdown() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    transfer_opened_.NotifyAll();
    DropOld(absl::InfiniteFuture());
  }
  room_.Shutdown();
  public_.Shutdown();
  executor_.Shutdown();
}

bool ParameterServer::PostWork(std::function<void()> work) {
  return executor_.Post([this, work = std::move(work)] {
    work();
    if (executor_.queued() == 0 || engine_.outbox() >= kOutboxMax) engine_.Flush();
  });
}

absl::Status ParameterServer::CheckMeant(const grpc::ServerContext& context) const {
  const auto meant = context.client_metadata().find(kMeantFor);
  const std::string self = LifeText(options_.self);
  if (meant == context.client_metadata().end() || meant->second == self) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("this is ", self, ", and not ", std::string(meant->second.data(), meant->second.size())));
}

void ParameterServer::Post(const ParentNode::Event& event) {
  PostWork([this, event] { engine_.Handle(event); });
}

void ParameterServer::OnParentVersion() {
  const FollowedParameters::Snapshot snapshot = up_->parameters().snapshot();
  if (snapshot.version.value() == 0) return;
  PostWork([this, moved = ParentNode::ParentMoved{snapshot.root_version, snapshot.tokens_committed, snapshot.lead}] {
    engine_.Handle(moved);
    up_->VersionSeen();
  });
}
void ParameterServer::OnParentWritten(Sequence sequence) { Post(ParentNode::Written{sequence}); }
void ParameterServer::OnParentAnswer(Sequence sequence, Verdict verdict) {
  Post(ParentNode::Answered{sequence, verdict});
}
void ParameterServer::OnParentBack() { Post(ParentNode::ParentBack{}); }
void ParameterServer::SetIdle(const std::set<MemberId>& idle) { Post(ParentNode::IdleChildren{idle}); }
void ParameterServer::SetDraining(bool on) {
  {
    MutexLock lock(mutex_);
    DropOld(absl::Now());
  }
  Post(ParentNode::Drain{on});
}
void ParameterServer::Tick() {
  {
    MutexLock lock(mutex_);
    DropOld(absl::Now());
  }
  Post(ParentNode::Tick{});
}

void ParameterServer::Fence(MemberKey child, std::function<void(std::vector<LeasedRange>)> done) {
  {
    // One that stands still in the middle of a contribution must not hold its room.
    MutexLock lock(mutex_);
    const auto after = reading_.upper_bound(child);
    for (auto it = reading_.lower_bound({child.member, Incarnation(0)}); it != after; ++it) it->second->TryCancel();
    accepted_.erase(accepted_.lower_bound({child.member, Incarnation(0)}), accepted_.upper_bound(child));
    left_off_.erase(left_off_.lower_bound({child.member, Incarnation(0)}), left_off_.upper_bound(child));
    const auto after_last = incoming_.upper_bound({child.member, child.incarnation, kLastTransfer});
    for (auto it = incoming_.lower_bound({child.member, Incarnation(0), 0}); it != after_last;) it = Drop(it);
  }
  PostWork([this, child, done = std::move(done)] { done(engine_.Fence(child)); });
}

bool ParameterServer::PostExclusive(std::function<void(const ParentNode&)> work) {
  return PostWork([this, work = std::move(work)] {
    engine_.Flush();
    work(engine_.node());
  });
}

void ParameterServer::RunExclusive(const std::function<void(const ParentNode&)>& work) {
  Notification done;
  const bool posted = PostExclusive([&](const ParentNode& node) {
    work(node);
    done.Notify();
  });
  if (posted) done.WaitFor(absl::InfiniteDuration());
}

void ParameterServer::TakeNoMore() {
  PostWork([this] { takes_no_more_ = true; });
}

void ParameterServer::PostSnapshot(std::function<void(Vectors)> work) {
  PostWork([this, work = std::move(work)] {
    if (engine_.Flush()) work(engine_.CopyVectors());
  });
}

PublicParameters::Cursor ParameterServer::CursorOf(MemberKey child, PublicParameters::Position have) {
  MutexLock lock(mutex_);
  DropOld(absl::Now());
  // Where no packet comes through any more, the child notices before this node does.
  const std::shared_ptr<Following> before = NewestFollowing(child);
  if (before != nullptr) {
    before->spread.Break();
    return public_.CursorAt(std::move(have), &before->cursor);
  }
  const auto found = left_off_.find(child);
  if (found == left_off_.end()) return public_.CursorAt(std::move(have));
  const PublicParameters::Cursor broken = std::move(found->second.cursor);
  left_off_.erase(found);
  return public_.CursorAt(std::move(have), &broken);
}

std::shared_ptr<ParameterServer::Following> ParameterServer::NewestFollowing(MemberKey child) const {
  const auto after = followings_.upper_bound({child.member, child.incarnation, kLastTransfer});
  if (after == followings_.begin()) return nullptr;
  const auto& [key, following] = *std::prev(after);
  return std::get<0>(key) == child.member && std::get<1>(key) == child.incarnation ? following : nullptr;
}

void ParameterServer::DropOld(absl::Time now) {
  for (auto it = left_off_.begin(); it != left_off_.end();) {
    it = it->second.until <= now ? left_off_.erase(it) : std::next(it);
  }
  for (auto it = incoming_.begin(); it != incoming_.end();) {
    const std::optional<absl::Time> until = it->second->kept_until;
    it = until.has_value() && *until <= now ? Drop(it) : std::next(it);
  }
}

ParameterServer::Transfers<ParameterServer::Incoming>::iterator ParameterServer::Drop(
    Transfers<Incoming>::iterator transfer) {
  room_.Return(&transfer->second->offer->room);
  return incoming_.erase(transfer);
}

bool ParameterServer::DropOldestBrokenOff() {
  MutexLock lock(mutex_);
  auto oldest = incoming_.end();
  for (auto it = incoming_.begin(); it != incoming_.end(); ++it) {
    if (!it->second->kept_until.has_value()) continue;
    if (oldest == incoming_.end() || *it->second->kept_until < *oldest->second->kept_until) oldest = it;
  }
  if (oldest == incoming_.end()) return false;
  Drop(oldest);
  return true;
}

int ParameterServer::broken_off() const {
  MutexLock lock(mutex_);
  return static_cast<int>(std::count_if(incoming_.begin(), incoming_.end(),
                                        [](const auto& transfer) { return transfer.second->kept_until.has_value(); }));
}

std::map<int, std::string> ParameterServer::TakeOver(MemberKey sender, Sequence sequence, StagingRoom::Share* to) {
  std::map<int, std::string> whole;
  MutexLock lock(mutex_);
  // Calls among them: where no packet comes through any more, the sender notices before this node does.
  const auto after = incoming_.upper_bound({sender.member, sender.incarnation, kLastTransfer});
  for (auto it = incoming_.lower_bound({sender.member, sender.incarnation, 0}); it != after;) {
    Incoming& before = *it->second;
    if (before.offer->header.sequence() != sequence.value()) {
      ++it;
      continue;
    }
    std::optional<std::map<int, std::string>> brought = before.assembly.TakeWhole();
    if (!brought.has_value()) {
      ++it;
      continue;
    }
    int64_t bytes = 0;
    for (auto& [index, fragment] : *brought) {
      const auto size = static_cast<int64_t>(fragment.size());
      if (index < kWholeFragmentsMax && whole.try_emplace(index, std::move(fragment)).second) bytes += size;
    }
    room_.PassOn(&before.offer->room, to, bytes);
    it = incoming_.erase(it);
  }
  return whole;
}

void ParameterServer::BeginTransfer(const TransferKey& key, std::shared_ptr<Incoming> incoming) {
  MutexLock lock(mutex_);
  const int64_t sequence = incoming->offer->header.sequence();
  const auto after = incoming_.upper_bound({std::get<0>(key), std::get<1>(key), kLastTransfer});
  for (auto it = incoming_.lower_bound({std::get<0>(key), std::get<1>(key), 0}); it != after;) {
    // Of another contribution that had this number and never was, or a number that is used twice.
    const bool replaced =
        it->first == key || (it->second->kept_until.has_value() && it->second->offer->header.sequence() == sequence);
    it = replaced ? Drop(it) : std::next(it);
  }
  incoming_[key] = std::move(incoming);
  transfer_opened_.NotifyAll();
}

bool ParameterServer::EndTransfer(const TransferKey& key, const std::shared_ptr<Incoming>& incoming,
                                  const absl::Status& status) {
  const bool was_accepted =
      WasAccepted({std::get<0>(key), std::get<1>(key)}, Sequence(incoming->offer->header.sequence()));
  MutexLock lock(mutex_);
  const auto found = incoming_.find(key);
  if (found == incoming_.end() || found->second != incoming) return false;
  if (stopping_ || was_accepted || !(absl::IsCancelled(status) || absl::IsUnavailable(status)) ||
      !incoming->assembly.has_whole()) {
    incoming_.erase(found);
    return false;
  }
  room_.Rest(&incoming->offer->room);
  incoming->kept_until = absl::Now() + kComesBack;
  return true;
}

bool ParameterServer::WasAccepted(MemberKey sender, Sequence sequence) {
  MutexLock lock(mutex_);
  const auto known = accepted_.find(sender);
  return known != accepted_.end() && known->second.count(sequence) > 0;
}

absl::Status ParameterServer::ReadContribution(grpc::ServerContext* context,
                                               grpc::ServerReader<ContributeMessage>* reader,
                                               const std::shared_ptr<Offer>& offer) {
  ContributeMessage message;
  if (!reader->Read(&message) || !message.has_header()) {
    return absl::InvalidArgumentError("a contribution begins with its header");
  }
  const ContributionHeader header = message.header();
  if (header.schema_digest() != options_.schema_digest) {
    return absl::FailedPreconditionError(
        absl::StrFormat("member %d sends parameters of another model (schema %.12s, this node has %.12s)",
                        header.member(), header.schema_digest(), options_.schema_digest));
  }
  if (header.codec() != options_.codec_up) {
    return absl::InvalidArgumentError(
        absl::StrFormat("codec %s, expected %s", CodecKind_Name(header.codec()), CodecKind_Name(options_.codec_up)));
  }
  if (header.fragments() != static_cast<int>(options_.fragments.size()) || header.ranges_size() > kRangesMax ||
      header.sequence() < 1 || header.tokens() < 0 || header.steps() < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%d fragments in %d ranges, expected %d fragments",
                                                      header.fragments(), header.ranges_size(),
                                                      options_.fragments.size()));
  }
  if (header.payload_bytes() < 0 || header.streams() < 1 || header.streams() > kStreamsMax ||
      header.payload_bytes() > static_cast<int64_t>(EncodedBytes(header.codec(), options_.fragments))) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d bytes over %d connections", header.payload_bytes(), header.streams()));
  }
  int64_t samples = 0;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const SampleRange& range : header.ranges()) {
    ranges.emplace_back(range.begin(), range.end());
    if (range.begin() < 0 || range.begin() >= range.end() || range.end() > kSampleMax) {
      return absl::InvalidArgumentError(
          absl::StrFormat("samples [%d, %d), expected at least one of %d", range.begin(), range.end(), kSampleMax));
    }
    samples += range.end() - range.begin();
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) {
      return absl::InvalidArgumentError(absl::StrFormat("sample %d is named twice", ranges[i].first));
    }
  }
  if (options_.samples_per_step > 0 && samples > 0 && header.steps() < (samples - 1) / options_.samples_per_step + 1) {
    return absl::InvalidArgumentError(absl::StrFormat("%d samples in %d steps, expected at most %d in one", samples,
                                                      header.steps(), options_.samples_per_step));
  }
  // They weigh it, and say how large its norm may be.
  const int64_t each = options_.tokens_per_sample;
  if (each > 0 && (header.tokens() % each != 0 || header.tokens() / each != samples)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d tokens from %d samples of %d", header.tokens(), samples, each));
  }
  offer->header = header;
  const MemberKey sender{MemberId(header.member()), Incarnation(header.incarnation())};
  if (WasAccepted(sender, Sequence(header.sequence()))) {
    offer->verdict = VERDICT_ACCEPTED;
    return absl::OkStatus();
  }
  const Reading reading(this, sender, context);
  const auto incoming =
      std::make_shared<Incoming>(offer, header, options_.fragments, /*partial=*/options_.node.parts > 1);
  ContributionAssembly& assembly = incoming->assembly;
  const TransferKey key(header.member(), header.incarnation(), header.transfer());
  const bool again = context->client_metadata().count(kAgain) > 0;
  std::map<int, std::string> brought;
  if (again) brought = TakeOver(sender, Sequence(header.sequence()), &offer->room);
  BeginTransfer(key, incoming);
  std::optional<uint64_t> sent_checksum;
  const auto read = [&] {
    std::string bits;
    for (auto& [index, fragment] : brought) {
      bits.resize(index / 8 + 1);
      bits[index / 8] = static_cast<char>(bits[index / 8] | 1 << index % 8);
      FragmentPayload piece;
      piece.set_index(index);
      piece.set_payload(std::move(fragment));
      // Of another contribution of this number: the next try begins anew.
      if (absl::Status added = assembly.Add(std::move(piece)); !added.ok()) return absl::AbortedError(added.message());
    }
    if (again) {
      context->AddInitialMetadata(kWholeFragments, bits);
      reader->SendInitialMetadata();
    }
    while (reader->Read(&message)) {
      if (sent_checksum.has_value()) return absl::InvalidArgumentError("more after the end of the contribution");
      if (message.has_end()) {
        sent_checksum = message.end().payload_checksum();
        continue;
      }
      if (!message.has_fragment()) return absl::InvalidArgumentError("something else among the fragments");
      absl::Status added = AddPiece(context, incoming.get(), std::move(*message.mutable_fragment()));
      if (!added.ok()) return added;
    }
    if (context->IsCancelled()) return absl::CancelledError("the contribution broke off");
    if (!sent_checksum.has_value()) return absl::InvalidArgumentError("the contribution ends without its checksum");
    assembly.StreamEnded(absl::OkStatus());
    while (true) {
      const std::optional<absl::Status> whole = assembly.Wait(kPoll);
      if (whole.has_value()) return *whole;
      if (context->IsCancelled()) return absl::CancelledError("the contribution broke off");
      MutexLock lock(mutex_);
      if (stopping_) return absl::UnavailableError("this node is shutting down");
    }
  };
  const absl::Status whole = read();
  offer->broken_off = EndTransfer(key, incoming, whole);
  if (!whole.ok()) return whole;
  offer->payload = assembly.payload();
  offer->norm = assembly.norm();
  const uint64_t checksum = offer->payload->checksum();
  if (checksum != *sent_checksum) {
    // Damaged on the way: the sender still has it.
    return absl::UnavailableError(
        absl::StrFormat("payload checksum %016x, the sender says %016x", checksum, *sent_checksum));
  }
  offer->header.set_payload_checksum(checksum);
  return absl::OkStatus();
}

absl::Status ParameterServer::AddPiece(grpc::ServerContext* context, Incoming* incoming, FragmentPayload piece) {
  const absl::Status room = room_.Take(&incoming->offer->room, static_cast<int64_t>(piece.payload().size()),
                                       [context] { return context->IsCancelled(); });
  return room.ok() ? incoming->assembly.Add(std::move(piece)) : room;
}

ParameterServer::TransferKey ParameterServer::KeyOf(const PartOf& part) {
  return {MemberId(part.member()), Incarnation(part.incarnation()), part.transfer()};
}

template <typename T>
absl::StatusOr<std::shared_ptr<T>> ParameterServer::Await(grpc::ServerContext* context,
                                                          Transfers<T> ParameterServer::*transfers,
                                                          const TransferKey& key, absl::Duration timeout) {
  MutexLock lock(mutex_);
  const absl::Time until = absl::Now() + timeout;
  while (!stopping_) {
    const auto found = (this->*transfers).find(key);
    if (found != (this->*transfers).end()) return found->second;
    if (context->IsCancelled()) return absl::CancelledError("the sender is gone");
    if (absl::Now() >= until) return absl::NotFoundError("no transfer of this number is under way");
    transfer_opened_.WaitFor(mutex_, kPoll);
  }
  return absl::UnavailableError("this node is shutting down");
}

grpc::Status ParameterServer::Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                                         ContributeReply* reply) {
  if (const absl::Status meant = CheckMeant(*context); !meant.ok()) return ToGrpc(meant);
  auto offer = std::make_shared<Offer>();
  const absl::Status read = ReadContribution(context, reader, offer);
  if (!read.ok()) {
    if (!offer->broken_off) room_.Return(&offer->room);
    return ToGrpc(read);
  }
  if (offer->verdict != VERDICT_UNSPECIFIED) {  // Its answer was lost.
    reply->set_verdict(offer->verdict);
    return grpc::Status::OK;
  }
  const bool posted = PostWork([this, offer] {
    if (takes_no_more_) {
      room_.Return(&offer->room);
      offer->answered.Notify();
      return;
    }
    NodeEngine::Contribution contribution;
    contribution.header = offer->header;
    contribution.payload = offer->payload;
    contribution.norm = offer->norm;
    contribution.released = [this, offer] { room_.Return(&offer->room); };
    contribution.answer = [this, offer](Verdict verdict, const std::string& detail) {
      if (verdict == VERDICT_ACCEPTED) {
        const MemberKey sender{MemberId(offer->header.member()), Incarnation(offer->header.incarnation())};
        MutexLock lock(mutex_);
        std::set<Sequence>& known = accepted_[sender];
        known.insert(Sequence(offer->header.sequence()));
        if (known.size() > kAcceptedKept) known.erase(known.begin());
      }
      offer->verdict = verdict;
      offer->detail = detail;
      offer->answered.Notify();
    };
    engine_.Take(std::move(contribution));
  });
  if (!posted) return ToGrpc(absl::UnavailableError("this node is shutting down"));
  while (!offer->answered.WaitFor(kPoll)) {
    // The verdict will be remembered for the repeat.
    if (context->IsCancelled()) return grpc::Status(grpc::StatusCode::CANCELLED, "the sender is gone");
    MutexLock lock(mutex_);
    if (stopping_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "this node is shutting down");
  }
  if (offer->verdict == VERDICT_UNSPECIFIED) return ToGrpc(absl::UnavailableError("this node takes nothing any more"));
  reply->set_verdict(offer->verdict);
  reply->set_detail(offer->detail);
  return grpc::Status::OK;
}

grpc::Status ParameterServer::ContributePart(grpc::ServerContext* context,
                                             grpc::ServerReader<ContributePartMessage>* reader,
                                             ContributePartReply* /*reply*/) {
  ContributePartMessage message;
  if (!reader->Read(&message) || !message.has_part_of()) {
    return ToGrpc(absl::InvalidArgumentError("a part begins with what it is a part of"));
  }
  // The contribution itself may come later: it goes over another connection.
  const auto incoming = Await(context, &ParameterServer::incoming_, KeyOf(message.part_of()), absl::InfiniteDuration());
  if (!incoming.ok()) return ToGrpc(incoming.status());
  const Reading reading(this, {MemberId(message.part_of().member()), Incarnation(message.part_of().incarnation())},
                        context);
  absl::Status status;
  while (status.ok() && reader->Read(&message)) {
    status = message.has_fragment() ? AddPiece(context, incoming->get(), std::move(*message.mutable_fragment()))
                                    : absl::InvalidArgumentError("something else among the fragments");
  }
  if (context->IsCancelled()) status.Update(absl::UnavailableError("a part of the contribution broke off"));
  (*incoming)->assembly.StreamEnded(status);
  return ToGrpc(status);
}

grpc::Status ParameterServer::Follow(grpc::ServerContext* context, const FollowRequest* request,
                                     grpc::ServerWriter<FollowMessage>* writer) {
  if (const absl::Status meant = CheckMeant(*context); !meant.ok()) return ToGrpc(meant);
  if (request->schema_digest() != options_.schema_digest) {
    return ToGrpc(absl::FailedPreconditionError(
        absl::StrFormat("member %d runs another model (schema %.12s, this node has %.12s)", request->member(),
                        request->schema_digest(), options_.schema_digest)));
  }
  const MemberKey child{MemberId(request->member()), Incarnation(request->incarnation())};
  Post(ParentNode::ChildAttached{child, Sequence(std::max<int64_t>(1, request->next_sequence()))});
  PublicParameters::Position have;
  have.complete = Version(request->have_version());
  for (const int64_t version : request->fragment_versions()) have.fragments.emplace_back(version);
  {
    MutexLock lock(mutex_);
    if (stopping_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "this node is shutting down");
  }
  context->AddInitialMetadata(kFollowing, "1");
  writer->SendInitialMetadata();
  const auto following = std::make_shared<Following>();
  following->cursor = CursorOf(child, std::move(have));
  if (request->versions() > 0) public_.Allow(&following->cursor, request->versions());
  FollowSpread* const spread = &following->spread;
  const TransferKey key(child.member, child.incarnation, request->transfer());
  if (request->transfer() != 0) {
    MutexLock lock(mutex_);
    followings_[key] = following;
    transfer_opened_.NotifyAll();
  }
  const absl::Time parts_until = absl::Now() + kPartsWait;
  while (spread->AwaitParts(request->parts(), kPoll) < request->parts() && absl::Now() < parts_until &&
         !context->IsCancelled()) {
  }
  public_.AddFollower();
  bool writable = true;
  while (writable && !context->IsCancelled() && !spread->broken()) {
    {
      MutexLock lock(mutex_);
      if (stopping_) break;
    }
    std::optional<FollowMessage> message = public_.Next(&following->cursor, child, kFollowPoll);
    if (!message.has_value()) continue;
    if (!message->fragment().payload().empty() && spread->AwaitParts(0, absl::ZeroDuration()) > 0) {
      writable = spread->Put(*std::move(message));
    } else {
      spread->Number(&*message);
      writable = writer->Write(*message);
    }
  }
  public_.RemoveFollower();
  spread->Break();
  {
    MutexLock lock(mutex_);
    const auto found = followings_.find(key);
    if (found != followings_.end() && found->second == following) followings_.erase(found);
    if (NewestFollowing(child) == nullptr) left_off_[child] = {following->cursor, absl::Now() + kComesBack};
    if (stopping_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "this node is shutting down");
  }
  return writable ? grpc::Status::OK : grpc::Status(grpc::StatusCode::UNAVAILABLE, "a connection broke");
}

grpc::Status ParameterServer::FollowPart(grpc::ServerContext* context, const FollowPartRequest* request,
                                         grpc::ServerWriter<FollowMessage>* writer) {
  const auto following = Await(context, &ParameterServer::followings_, KeyOf(request->part_of()), kPartsWait);
  if (!following.ok()) return ToGrpc(following.status());
  FollowSpread* const spread = &(*following)->spread;
  const int part = spread->Attach();
  while (!spread->broken() && !context->IsCancelled()) {
    const std::optional<FollowMessage> message = spread->Take(part, kPartPoll);
    if (message.has_value() && !writer->Write(*message)) break;
  }
  spread->Break();
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream has ended");
}

grpc::Status ParameterServer::FollowMore(grpc::ServerContext* context, const FollowMoreRequest* request,
                                         FollowMoreReply* /*reply*/) {
  const auto following = Await(context, &ParameterServer::followings_, KeyOf(request->part_of()), absl::ZeroDuration());
  if (!following.ok()) return ToGrpc(following.status());
  public_.Allow(&(*following)->cursor, request->versions());
  return grpc::Status::OK;
}

}  // namespace wukong
