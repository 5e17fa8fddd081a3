#include "runtime/data/token_dataset.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/base/shell_word.h"
#include "runtime/data/manifest.h"
#include "runtime/data/packing.h"
#include "runtime/data/utf8.h"

namespace wukong {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are mapped, not converted");

// llm.c: 256 little-endian 32-bit integers (magic, version, count, then zeros), then the tokens.
constexpr size_t kHeaderBytes = 256 * sizeof(int32_t);
constexpr int32_t kMagic = 20240520;
constexpr int32_t kMagic32Bit = 20240801;
constexpr int32_t kHeaderVersion = 1;

// A guess at what a file holds is made from this much of it, and only where it has enough.
constexpr size_t kGuessedBytesMax = size_t{64} << 10;
constexpr size_t kGuessedBytesMin = size_t{4} << 10;

// UTF-8 without control characters other than white space. Bytes as tokens have a 0 behind each of them, and other
// tokens look like this for a few bytes only.
bool LooksLikeText(absl::string_view head) {
  constexpr size_t kCutMax = 3;  // The end may be within a character.
  if (SkipValidUtf8(head, 0, head.size()) + kCutMax < head.size()) return false;
  return std::all_of(head.begin(), head.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || absl::ascii_isprint(byte) || absl::ascii_isspace(byte);
  });
}

// 32 or 64 when `words` look like the parts of such tokens; else 0. With vocabularies of up to 131,072 the second part
// is 0 or 1.
int LooksLikeBits(absl::Span<const uint16_t> words) {
  for (const size_t parts : {size_t{4}, size_t{2}}) {
    const size_t tokens = words.size() / parts;
    size_t fitting = 0, beyond_one = 0;
    for (size_t i = 0; i < tokens; ++i) {
      const absl::Span<const uint16_t> token = words.subspan(i * parts, parts);
      const bool rest_is_zero = std::all_of(token.begin() + 2, token.end(), [](uint16_t word) { return word == 0; });
      fitting += token[1] <= 1 && rest_is_zero ? 1 : 0;
      beyond_one += token[0] > 1 ? 1 : 0;
    }
    if (fitting == tokens && beyond_one > tokens / 2) return static_cast<int>(16 * parts);
  }
  return 0;
}

// Finds the layout and where the tokens begin.
absl::Status ParseLayout(const std::string& path, absl::Span<const char> bytes, TokenFile::Layout* layout,
                         size_t* offset) {
  *layout = TokenFile::Layout::kNanoGpt;
  *offset = 0;
  if (bytes.empty()) {
    return BadFile(path,
                   "the file is empty; expected unsigned 16-bit tokens. Make it again with `wukong data prepare`");
  }
  constexpr absl::string_view kMegatron = "MMIDIDX";
  if (bytes.size() >= kMegatron.size() && absl::string_view(bytes.data(), kMegatron.size()) == kMegatron) {
    return BadFile(path,
                   "this is the index of a Megatron data set; expected a token file in nanoGPT's or llm.c's layout");
  }
  int32_t header[3] = {0, 0, 0};
  std::memcpy(header, bytes.data(), std::min(bytes.size(), sizeof(header)));
  if (header[0] == kMagic32Bit) {
    return BadFile(path,
                   "llm.c's layout for 32-bit tokens (magic 20240801); only 16-bit tokens (magic 20240520) are read");
  }
  if (header[0] != kMagic) {
    const absl::string_view head(bytes.data(), bytes.size());
    if (absl::StartsWith(head, "\x93NUMPY")) {
      return BadFile(path,
                     absl::StrCat("this is a NumPy array (.npy); expected bare unsigned 16-bit tokens. Convert it: "
                                  "numpy.load(\"",
                                  path, "\").astype(numpy.uint16).tofile(\"tokens.bin\")"));
    }
    if (const Packing* const packing = FindPacking(head); packing != nullptr) {
      return BadFile(path, absl::StrCat("is packed by ", packing->name,
                                        "; expected unsigned 16-bit tokens. Unpack it: ", packing->unpack, " ",
                                        ShellWord(path), " > FILE"));
    }
    if (bytes.size() % 2 == 0) return absl::OkStatus();
    return BadFile(path, absl::StrCat("the size is odd, ", bytes.size(),
                                      " bytes; expected 2 bytes per token. The file was cut, or "
                                      "is not a token file; `wukong data prepare` makes them from text"));
  }
  if (bytes.size() < kHeaderBytes) {
    return BadFile(path,
                   absl::StrCat("llm.c's header is cut: ", bytes.size(), " bytes; expected at least ", kHeaderBytes));
  }
  if (header[1] != kHeaderVersion) {
    return BadFile(
        path, absl::StrCat("llm.c's layout in version ", header[1], "; this program reads version ", kHeaderVersion));
  }
  if (header[2] < 0 || bytes.size() != kHeaderBytes + size_t{2} * static_cast<size_t>(header[2])) {
    return BadFile(path, absl::StrCat("the header says ", header[2], " tokens, which is ",
                                      static_cast<int64_t>(kHeaderBytes) + int64_t{2} * header[2],
                                      " bytes with the header, but the file has ", bytes.size(),
                                      ": it was cut or damaged; copy or make it again"));
  }
  if (header[2] == 0) return BadFile(path, "the header says 0 tokens; expected at least one");
  *layout = TokenFile::Layout::kLlmC;
  *offset = kHeaderBytes;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return ErrnoToStatus(errno, "cannot open token file " + path);
  struct stat info;
  if (::fstat(file, &info) != 0) {
    const absl::Status status = ErrnoToStatus(errno, "cannot read token file " + path);
    ::close(file);
    return status;
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(file);
    return BadFile(path, S_ISDIR(info.st_mode) ? "is a directory; expected a token file" : "is not a regular file");
  }
  std::unique_ptr<TokenFile> result(new TokenFile());
  result->path_ = path;
  const size_t size = static_cast<size_t>(info.st_size);
  if (size > 0) {
    void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
    const int error = errno;
    if (mapping == MAP_FAILED) {
      ::close(file);
      return ErrnoToStatus(error, absl::StrCat("cannot map token file ", path, " of ", size, " bytes"));
    }
    result->mapping_ = mapping;
    result->mapping_bytes_ = size;
  }
  ::close(file);  // The mapping stays.
  const char* bytes = static_cast<const char*>(result->mapping_);
  size_t offset = 0;
  const absl::Status status = ParseLayout(path, absl::MakeConstSpan(bytes, size), &result->layout_, &offset);
  if (!status.ok()) return status;
  // The mapping begins at a page and the offset is even.
  result->tokens_ = absl::MakeConstSpan(reinterpret_cast<const uint16_t*>(bytes + offset), (size - offset) / 2);
  return result;
}

TokenFile::~TokenFile() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_bytes_);
}

absl::Status TokenFile::CheckContents() const {
  if (layout_ != Layout::kNanoGpt || mapping_bytes_ < kGuessedBytesMin) return absl::OkStatus();
  const absl::string_view head(static_cast<const char*>(mapping_), std::min(mapping_bytes_, kGuessedBytesMax));
  if (LooksLikeText(head)) {
    return BadFile(
        path_, "looks like text; expected unsigned 16-bit tokens. Make a token file of it with `wukong data prepare`");
  }
  const int bits = LooksLikeBits(tokens_.first(head.size() / sizeof(uint16_t)));
  if (bits == 0) return absl::OkStatus();
  return BadFile(path_, absl::StrCat("looks like tokens of ", bits,
                                     " bits; expected unsigned 16-bit tokens. Convert it: "
                                     "numpy.fromfile(\"",
                                     path_, "\", numpy.uint", bits, ").astype(numpy.uint16).tofile(\"tokens.bin\")"));
}

absl::Status TokenFile::CheckVocabulary(int64_t vocabulary) const {
  uint16_t largest = 0;
  for (const uint16_t token : tokens_) largest = std::max(largest, token);
  if (largest < vocabulary) return absl::OkStatus();
  const auto first = std::find_if(tokens_.begin(), tokens_.end(), [&](uint16_t token) { return token >= vocabulary; });
  return BadFile(path_,
                 absl::StrCat("token ", *first, " at position ", first - tokens_.begin(), " of ", tokens_.size(),
                              " is beyond the vocabulary of ", vocabulary,
                              ". The file is damaged, was made with another tokenizer, or model.vocabulary is wrong "
                              "(the largest token is ",
                              largest, ")"));
}

std::string TokenFile::Fingerprint() const {
  constexpr size_t kTaken = 64, kTakenTokens = 1024;
  const size_t end = tokens_.size() - std::min(tokens_.size(), kTakenTokens);
  std::string text;
  for (size_t i = 0; i < kTaken; ++i) {
    const absl::Span<const uint16_t> piece = tokens_.subspan(i * end / (kTaken - 1), kTakenTokens);
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size() * sizeof(uint16_t));
  }
  return absl::StrCat(tokens_.size(), " tokens ", Sha256Hex(text).substr(0, 16));
}

absl::Status CheckApart(const TokenFile& training, const TokenFile& validation) {
  if (training.Fingerprint() != validation.Fingerprint()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the same tokens as data.train, so that the validation loss would only tell what was learned by "
                   "heart (expected other text than ",
                   training.path(), " has, got ", validation.path(), "); `wukong data prepare` splits a text in two"));
}

absl::StatusOr<SampleReader> SampleReader::Make(std::shared_ptr<const TokenFile> file, int64_t context, uint64_t seed) {
  CHECK(file != nullptr);
  if (context < 1) return absl::InvalidArgumentError(absl::StrCat("a context of ", context, "; expected at least 1"));
  const int64_t tokens = static_cast<int64_t>(file->tokens().size());
  if (tokens - 1 < context) {  // The last target is one token further.
    return BadFile(file->path(), absl::StrCat(tokens, " tokens; a sample of ", context, " tokens and its targets need ",
                                              context, " + 1. Prepare more text, or take a smaller model.context"));
  }
  SampleReader reader;
  reader.file_ = std::move(file);
  reader.context_ = context;
  reader.samples_per_epoch_ = (tokens - 1) / context;
  reader.seed_ = seed;
  return reader;
}

SampleReader SampleReader::Numbers() {
  SampleReader reader;
  reader.context_ = 1;
  reader.samples_per_epoch_ = int64_t{1} << 40;
  return reader;
}

void SampleReader::Append(int64_t index, std::vector<int64_t>* tokens, std::vector<int64_t>* targets) const {
  CHECK_GE(index, 0);
  if (file_ == nullptr) {
    AppendInOrder(index, tokens, targets);
    return;
  }
  const int64_t epoch = index / samples_per_epoch_;
  const Permutation order(DeriveSeed(seed_, "epoch", static_cast<uint64_t>(epoch)),
                          static_cast<uint64_t>(samples_per_epoch_));
  AppendInOrder(static_cast<int64_t>(order(static_cast<uint64_t>(index % samples_per_epoch_))), tokens, targets);
}

void SampleReader::AppendInOrder(int64_t sample, std::vector<int64_t>* tokens, std::vector<int64_t>* targets) const {
  CHECK_GE(sample, 0);
  CHECK_LT(sample, samples_per_epoch_);
  if (file_ == nullptr) {
    tokens->push_back(sample);
    targets->push_back(sample);
    return;
  }
  const absl::Span<const uint16_t> window =
      file_->tokens().subspan(static_cast<size_t>(sample * context_), static_cast<size_t>(context_) + 1);
  tokens->insert(tokens->end(), window.begin(), window.end() - 1);
  targets->insert(targets->end(), window.begin() + 1, window.end());
}

absl::StatusOr<DataFiles> FindDataFiles(const Data& data) {
  if (!data.directory().empty()) {
    if (!data.train().empty() || !data.validation().empty()) {
      return absl::InvalidArgumentError(
          "data.directory stands beside data.train or data.validation; give one or the other");
    }
    absl::StatusOr<DataManifest> manifest = ReadManifest(data.directory());
    if (!manifest.ok()) return manifest.status();
    const absl::Status sizes = CheckManifestSizes(data.directory(), *manifest);
    if (!sizes.ok()) return sizes;
    return DataFiles{absl::StrCat(data.directory(), "/", manifest->train.file),
                     absl::StrCat(data.directory(), "/", manifest->validation.file)};
  }
  if (data.train().empty() || data.validation().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        data.train().empty() ? "data.train" : "data.validation",
        " is not set; give data.directory (made by `wukong data prepare`), or data.train and data.validation"));
  }
  return DataFiles{data.train(), data.validation()};
}

double UnigramLoss(absl::Span<const uint16_t> train, absl::Span<const uint16_t> validation, int64_t vocabulary) {
  if (validation.empty()) return 0;
  // All that a token can be, so that one beyond the vocabulary does no harm.
  std::vector<int64_t> in_train(1 << 16), in_validation(1 << 16);
  for (const uint16_t token : train) ++in_train[token];
  for (const uint16_t token : validation) ++in_validation[token];
  const double denominator = static_cast<double>(train.size()) + static_cast<double>(vocabulary);
  double loss = 0;
  for (size_t token = 0; token < in_train.size(); ++token) {
    if (in_validation[token] == 0) continue;
    const double probability = (static_cast<double>(in_train[token]) + 1) / denominator;
    loss -= static_cast<double>(in_validation[token]) * std::log(probability);
  }
  return loss / static_cast<double>(validation.size());
}

}  // namespace wukong
