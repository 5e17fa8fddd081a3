// Tokens per second of the trainer alone: N processes on random tokens, without any synchronisation. What the runtime's
// own figures are compared with.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"
#include "runtime/model/compute_process.h"
#include "runtime/model/trainer.h"

namespace wukong {
namespace {

struct Options {
  int layers = 6, heads = 4, width = 128, context = 128, vocabulary = 256;
  int micro_batch = 8, accumulation = 1, threads = 1, processes = 1;
  double seconds = 10;
  std::string precision = "fp32";
  std::string device = "cpu";
  bool json = false;
};

// What one process sends to its parent.
struct Result {
  double tokens = 0, seconds = 0, cpu_seconds = 0, gradient_seconds = 0, clip_seconds = 0, optimizer_seconds = 0,
         loss = 0, first_loss = 0, parameters = 0;
};

Job MakeJob(const Options& options) {
  Job job;
  job.set_seed(1);
  job.mutable_model()->set_layers(options.layers);
  job.mutable_model()->set_heads(options.heads);
  job.mutable_model()->set_width(options.width);
  job.mutable_model()->set_context(options.context);
  job.mutable_model()->set_vocabulary(options.vocabulary);
  Optimizer* optimizer = job.mutable_optimizer();
  optimizer->set_learning_rate(1e-3);
  optimizer->set_beta1(0.9);
  optimizer->set_beta2(0.95);
  optimizer->set_epsilon(1e-8);
  optimizer->set_weight_decay(0.1);
  optimizer->set_clip_norm(1.0);
  return job;
}

absl::StatusOr<Result> Measure(const Options& options, int process) {
  const RealClock clock;
  TrainerTimes times;
  TrainerOptions trainer_options;
  trainer_options.precision = options.precision == "bf16" ? PRECISION_BF16 : PRECISION_FP32;
  trainer_options.device = options.device;
  trainer_options.threads = options.threads;
  trainer_options.clock = &clock;
  trainer_options.times = &times;
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(MakeJob(options), trainer_options);
  if (!trainer.ok()) return trainer.status();

  Random random(DeriveSeed(1, "trainer_bench", process));
  std::vector<Batch> batches(4);
  for (Batch& batch : batches) {
    batch.samples = options.micro_batch;
    batch.context = options.context;
    const size_t size = static_cast<size_t>(options.micro_batch) * options.context;
    for (size_t i = 0; i < size; ++i) {
      batch.tokens.push_back(static_cast<int64_t>(random.Below(options.vocabulary)));
      batch.targets.push_back(static_cast<int64_t>(random.Below(options.vocabulary)));
    }
  }
  Result result;
  result.parameters = static_cast<double>((*trainer)->layout().size());
  const int warm_up_steps = 5;
  absl::Time begin;
  std::clock_t cpu_begin = 0;
  for (int64_t step = 0;; ++step) {
    if (step == warm_up_steps) {
      times = TrainerTimes();
      begin = clock.Now();
      cpu_begin = std::clock();
    }
    for (int i = 0; i < options.accumulation; ++i) {
      const Batch& batch = batches[(step * options.accumulation + i) % batches.size()];
      const absl::StatusOr<double> loss = (*trainer)->AccumulateGradient(batch, 1.0 / options.accumulation);
      if (!loss.ok()) return loss.status();
      result.loss = *loss;
      if (step == 0 && i == 0) result.first_loss = *loss;
    }
    const absl::StatusOr<double> norm = (*trainer)->OptimizerStep(1e-3);
    if (!norm.ok()) return norm.status();
    if (step < warm_up_steps) continue;
    result.tokens += static_cast<double>(options.micro_batch) * options.context * options.accumulation;
    result.seconds = absl::ToDoubleSeconds(clock.Now() - begin);
    result.cpu_seconds = static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
    if (result.seconds >= options.seconds) break;
  }
  result.gradient_seconds = absl::ToDoubleSeconds(times.gradient);
  result.clip_seconds = absl::ToDoubleSeconds(times.clip);
  result.optimizer_seconds = absl::ToDoubleSeconds(times.optimizer);
  return result;
}

// Floating-point operations of all matrix products per token, forward and backward; attention without its mask.
double FlopsPerToken(const Options& o) {
  const double matrices = 12.0 * o.layers * o.width * o.width + static_cast<double>(o.vocabulary) * o.width;
  return 6.0 * matrices + 12.0 * o.layers * o.context * o.width;
}

void Print(const Options& options, const std::vector<Result>& results) {
  double sum = 0;
  for (const Result& result : results) sum += result.tokens / result.seconds;
  if (options.json) {
    nlohmann::ordered_json json;
    json["precision"] = options.precision;
    json["threads"] = options.threads;
    json["tokens_per_second"] = sum;
    json["flops_per_token"] = FlopsPerToken(options);
    json["processes"] = nlohmann::ordered_json::array();
    for (const Result& result : results) {
      json["processes"].push_back({{"tokens_per_second", result.tokens / result.seconds},
                                   {"tokens_per_cpu_second", result.tokens / result.cpu_seconds},
                                   {"gradient_share", result.gradient_seconds / result.seconds},
                                   {"clip_share", result.clip_seconds / result.seconds},
                                   {"optimizer_share", result.optimizer_seconds / result.seconds},
                                   {"parameters", result.parameters},
                                   {"first_loss", result.first_loss},
                                   {"loss", result.loss}});
    }
    std::printf("%s\n", json.dump().c_str());
    return;
  }
  std::printf("%8s %10s %12s %10s %18s %6s %10s\n", "process", "tokens/s", "tokens/CPU-s", "GFLOP/s",
              "forward+backward", "clip", "optimizer");
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    const double rate = r.tokens / r.seconds;
    std::printf("%8zu %10.0f %12.0f %10.1f %17.1f%% %5.1f%% %9.1f%%\n", i, rate, r.tokens / r.cpu_seconds,
                rate * FlopsPerToken(options) * 1e-9, 100 * r.gradient_seconds / r.seconds,
                100 * r.clip_seconds / r.seconds, 100 * r.optimizer_seconds / r.seconds);
  }
  std::printf("%8s %10.0f %12s %10.1f\n", "sum", sum, "", sum * FlopsPerToken(options) * 1e-9);
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Tokens per second of the trainer alone, without any synchronisation.");
  app.add_option("--layers", options.layers)->capture_default_str();
  app.add_option("--heads", options.heads)->capture_default_str();
  app.add_option("--width", options.width)->capture_default_str();
  app.add_option("--context", options.context)->capture_default_str();
  app.add_option("--vocabulary", options.vocabulary)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--micro-batch", options.micro_batch)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--accumulation", options.accumulation)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--precision", options.precision)->check(CLI::IsMember({"fp32", "bf16"}))->capture_default_str();
  app.add_option("--device", options.device)->capture_default_str();
  app.add_option("--threads", options.threads, "Per process")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--processes", options.processes)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--seconds", options.seconds)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--json", options.json, "One JSON object on standard output");
  CLI11_PARSE(app, argc, argv);

  // libtorch's threads do not survive a fork: the children come first, and the parent never calls it.
  std::vector<int> pipes;
  std::vector<pid_t> children;
  for (int i = 0; i < options.processes; ++i) {
    int ends[2];
    if (pipe(ends) != 0) {
      std::perror("trainer_bench: pipe");
      return 1;
    }
    const pid_t child = fork();
    if (child < 0) {
      std::perror("trainer_bench: fork");
      return 1;
    }
    if (child == 0) {
      TuneForComputing();
      const absl::StatusOr<Result> result = Measure(options, i);
      if (!result.ok()) {
        std::fprintf(stderr, "trainer_bench: process %d: %s\n", i, result.status().ToString().c_str());
        _exit(1);
      }
      const bool written = write(ends[1], &*result, sizeof(*result)) == static_cast<ssize_t>(sizeof(*result));
      _exit(written ? 0 : 1);
    }
    close(ends[1]);
    pipes.push_back(ends[0]);
    children.push_back(child);
  }
  std::vector<Result> results(options.processes);
  bool ok = true;
  for (int i = 0; i < options.processes; ++i) {
    ok = read(pipes[i], &results[i], sizeof(Result)) == static_cast<ssize_t>(sizeof(Result)) && ok;
    int status = 0;
    waitpid(children[i], &status, 0);
  }
  if (!ok) return 1;
  Print(options, results);
  return 0;
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) { return wukong::Main(argc, argv); }
