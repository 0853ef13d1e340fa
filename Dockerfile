# Runs the demo: docker build -t asr_lightning . && docker run --rm -v "$PWD/runs:/asr_lightning/runs" asr_lightning
FROM python:3.11-slim
RUN apt-get update -q && apt-get install -y -q --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /asr_lightning
COPY . .
RUN make install
CMD ["make", "demo"]
