FROM python:3.13-slim
WORKDIR /xor_study
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt -e .
ENTRYPOINT ["xor-study"]
# docker build -t xor-study .
# docker run --rm xor-study loss=axon_0_6_1 seed=109 log=axon
# docker run --rm -v "$PWD/results/runs:/xor_study/results/runs" xor-study -m lr=0.01,0.1 seed='range(0,20)'
